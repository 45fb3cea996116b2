package store

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job"
)

func image(t *testing.T, name, id string, age time.Duration) Image {
	return Image{
		ImageInfo: job.ImageInfo{
			ImageRef: job.ImageRef{Name: name, ID: id, Root: root(t, id).Bytes(), Size: 5, Platform: "linux/amd64"},
			Command:  []string{"/bin/x"}, Env: []string{"A=b"},
		},
		Layers: 3, Created: noon.Add(-age),
	}
}

func TestImages(t *testing.T) {
	db := openTest(t, quiet())
	id1, id2, id3 := "sha256:aaaa11", "sha256:aaaa22", "sha256:bbbb33"
	for _, im := range []Image{
		image(t, "tiles:latest", id1, time.Hour), image(t, "tiles:v1", id1, 2*time.Hour),
		image(t, "blender", id2, 0), image(t, "", id3, 3*time.Hour),
	} {
		if err := db.PutImage(t.Context(), im); err != nil {
			t.Fatal(err)
		}
	}
	list, err := db.Images(t.Context())
	if err != nil || len(list) != 4 || list[0].Name != "blender" || !reflect.DeepEqual(*list[1], image(t, "tiles:latest", id1, time.Hour)) {
		t.Fatalf("images %+v, %v", list, err)
	}
	for ref, want := range map[string]string{
		"tiles": id1, "tiles:v1": id1, "blender": id2, id3: id3, "bbbb": id3, "bbbb33": id3, "sha256:aaaa1": id1, "aaaa2": id2,
	} {
		if im, err := db.Image(t.Context(), ref); err != nil || im.ID != want {
			t.Errorf("%s: %+v, %v", ref, im, err)
		}
	}
	for ref, want := range map[string]error{
		"aaaa": ErrAmbiguous, "sha256:aaaa": ErrAmbiguous, "none": job.ErrNotFound, "aaa": job.ErrNotFound, "cccc": job.ErrNotFound,
		"": job.ErrNotFound, "%": job.ErrNotFound, "tiles:v2": job.ErrNotFound,
	} {
		if _, err := db.Image(t.Context(), ref); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", ref, err, want)
		}
	}
	// A name moves; an image without names is found by its id no more.
	if err := db.PutImage(t.Context(), image(t, "blender", id1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Image(t.Context(), id2); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("the image that lost its name: %v", err)
	}
	if err := db.DeleteImage(t.Context(), "tiles"); err != nil {
		t.Fatal(err)
	}
	if list, _ := db.Images(t.Context()); len(list) != 3 {
		t.Errorf("%d images after one name was deleted", len(list))
	}
	if err := db.DeleteImage(t.Context(), "aaaa11"); err != nil {
		t.Fatal(err)
	}
	if list, _ := db.Images(t.Context()); len(list) != 1 || list[0].ID != id3 {
		t.Errorf("%d images after all names of an id were deleted", len(list))
	}
	if err := db.DeleteImage(t.Context(), "tiles"); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	if err := db.PutImage(t.Context(), Image{}); err == nil {
		t.Error("an image without a root was kept")
	}
}

func TestPinsAndSettings(t *testing.T) {
	db := openTest(t, quiet())
	a, b := root(t, "a"), root(t, "b")
	for _, text := range []string{"one", "two"} {
		if err := db.Pin(t.Context(), a, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Pin(t.Context(), b, ""); err != nil {
		t.Fatal(err)
	}
	pins, err := db.Pins(t.Context())
	if err != nil || len(pins) != 2 {
		t.Fatalf("pins %v, %v", pins, err)
	}
	for _, p := range pins {
		if p.Root.Equals(a) && p.Text != "two" || !p.Created.Equal(noon) {
			t.Errorf("pin %+v", p)
		}
	}
	want := job.Prices{Asset: "usd", CPU: 5, Models: map[string]uint64{"h100-80": 7}}
	var got job.Prices
	if err := db.Setting(t.Context(), "prices", &got); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("setting of nothing: %v", err)
	}
	for _, v := range []job.Prices{{}, want} {
		if err := db.SetSetting(t.Context(), "prices", v); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Setting(t.Context(), "prices", &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("setting %+v, %v", got, err)
	}
	if err := db.SetSetting(t.Context(), "big", strings.Repeat("x", maxSetting)); err == nil {
		t.Error("a setting without bound")
	}
}
