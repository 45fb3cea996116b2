package render

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"image"
	"testing"
)

func TestBoundsCoverThePicture(t *testing.T) {
	area := 0
	for n := 1; n <= Tiles; n++ {
		b := Bounds(n)
		if !b.In(image.Rect(0, 0, Width, Height)) {
			t.Errorf("tile %d lies outside: %v", n, b)
		}
		for m := 1; m < n; m++ {
			if b.Overlaps(Bounds(m)) {
				t.Errorf("tiles %d and %d overlap", n, m)
			}
		}
		area += b.Dx() * b.Dy()
	}
	if area != Width*Height {
		t.Errorf("tiles cover %d pixels of %d", area, Width*Height)
	}
}

func TestTileIsTheSameEverywhere(t *testing.T) {
	img, err := Tile(3)
	if err != nil {
		t.Fatal(err)
	}
	// Computed once on amd64; every machine must agree.
	const want = "8555375285726bd8330ebd09c2f1ddf13ca4c81d16d917ab51c77a6369af95e9"
	if got := fmt.Sprintf("%x", sha256.Sum256(img.Pix)); got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
}

func TestTileRefusesNumbersOutside(t *testing.T) {
	for _, n := range []int{0, -1, Tiles + 1} {
		if _, err := Tile(n); err == nil {
			t.Errorf("tile %d was drawn", n)
		}
	}
}

func TestAssemble(t *testing.T) {
	tile := func(n int) []byte {
		img := image.NewRGBA(Bounds(n))
		for i := range img.Pix {
			img.Pix[i] = uint8(n) | 1
			if i%4 == 3 {
				img.Pix[i] = 255
			}
		}
		raw, err := Encode(img)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	pic, err := Assemble(func(n int) ([]byte, error) { return tile(n), nil })
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= Tiles; n++ {
		at := Bounds(n).Min
		if got := pic.RGBAAt(at.X, at.Y).R; got != uint8(n)|1 {
			t.Errorf("tile %d: red %d", n, got)
		}
	}

	missing := errors.New("missing")
	if _, err := Assemble(func(n int) ([]byte, error) { return nil, missing }); !errors.Is(err, missing) {
		t.Errorf("error %v, want the reader's", err)
	}
	if _, err := Assemble(func(int) ([]byte, error) { return []byte("no image"), nil }); err == nil {
		t.Error("took what is no image")
	}
	small, err := Encode(image.NewRGBA(image.Rect(0, 0, 2, 2)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Assemble(func(int) ([]byte, error) { return bytes.Clone(small), nil }); err == nil {
		t.Error("took a tile of the wrong size")
	}
}
