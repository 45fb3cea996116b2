// Package render draws one picture of the Mandelbrot set tile by tile. It hides
// the arithmetic and the palette. The same tile comes out the same, bit for
// bit, on every machine: products are rounded before they are added (no fused
// multiply-add), and nothing but +, -, * and / touches a float.
package render

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
)

// The grid of the picture. Tiles are numbered from 1, row by row.
const (
	Columns  = 6
	Rows     = 4
	Tiles    = Columns * Rows
	TileSize = 160 // pixels, both ways
	Width    = Columns * TileSize
	Height   = Rows * TileSize
)

const (
	samples = 8    // a pixel is samples × samples points
	limit   = 3000 // rounds after which a point counts as inside

	// The view: the tail of a seahorse, -0.7436439 + 0.1318259i in its middle.
	left  = -0.7469
	top   = 0.1340
	scale = 0.0066 / Width // of one pixel
)

// Bounds is the place of a tile in the picture; tile is 1 to Tiles.
func Bounds(tile int) image.Rectangle {
	x, y := (tile-1)%Columns*TileSize, (tile-1)/Columns*TileSize
	return image.Rect(x, y, x+TileSize, y+TileSize)
}

// Tile draws one tile; its bounds are those of Bounds.
func Tile(tile int) (*image.RGBA, error) {
	if tile < 1 || tile > Tiles {
		return nil, fmt.Errorf("tile %d is not between 1 and %d", tile, Tiles)
	}
	b := Bounds(tile)
	img := image.NewRGBA(b)
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			img.SetRGBA(x, y, pixel(x, y))
		}
	}
	return img, nil
}

func pixel(x, y int) color.RGBA {
	var r, g, b uint32
	for i := range samples {
		for j := range samples {
			px := float64(x*samples+i) / samples
			py := float64(y*samples+j) / samples
			c := palette(escape(left+float64(px*scale), top-float64(py*scale)))
			r, g, b = r+uint32(c.R), g+uint32(c.G), b+uint32(c.B)
		}
	}
	const n = samples * samples
	return color.RGBA{R: uint8(r / n), G: uint8(g / n), B: uint8(b / n), A: 255} //nolint:gosec // means of bytes
}

// escape counts the rounds of z = z² + c until z has left for good; limit means
// never.
func escape(cr, ci float64) int {
	var zr, zi float64
	for n := range limit {
		rr, ii := float64(zr*zr), float64(zi*zi)
		if rr+ii > 16 {
			return n
		}
		ri := float64(zr * zi)
		zr, zi = rr-ii+cr, ri+ri+ci
	}
	return limit
}

// stops are the colours that the palette passes through, night to rice gold.
var stops = [...]color.RGBA{
	{8, 12, 40, 255},
	{24, 72, 112, 255},
	{236, 232, 208, 255},
	{226, 164, 40, 255},
	{96, 36, 20, 255},
}

const band = 24 // rounds from one stop to the next

func palette(n int) color.RGBA {
	if n == limit {
		return color.RGBA{4, 4, 10, 255}
	}
	from, to := stops[n/band%len(stops)], stops[(n/band+1)%len(stops)]
	mix := func(a, b uint8) uint8 {
		return uint8((int(a)*(band-n%band) + int(b)*(n%band)) / band) //nolint:gosec // between two bytes
	}
	return color.RGBA{mix(from.R, to.R), mix(from.G, to.G), mix(from.B, to.B), 255}
}

// Encode is a tile as a PNG file.
func Encode(tile *image.RGBA) ([]byte, error) {
	var out bytes.Buffer
	if err := png.Encode(&out, tile); err != nil {
		return nil, fmt.Errorf("encoding a tile: %w", err)
	}
	return out.Bytes(), nil
}

// Name is the file name of a tile.
func Name(tile int) string { return fmt.Sprintf("tile-%02d.png", tile) }

// Assemble puts tiles, read by their number, together into the picture.
func Assemble(read func(tile int) ([]byte, error)) (*image.RGBA, error) {
	picture := image.NewRGBA(image.Rect(0, 0, Width, Height))
	for n := 1; n <= Tiles; n++ {
		raw, err := read(n)
		if err != nil {
			return nil, fmt.Errorf("tile %d: %w", n, err)
		}
		img, err := png.Decode(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("tile %d is no PNG: %w", n, err)
		}
		if size := img.Bounds().Size(); size != image.Pt(TileSize, TileSize) {
			return nil, fmt.Errorf("tile %d is %s pixels, not %d×%d", n, size, TileSize, TileSize)
		}
		draw.Draw(picture, Bounds(n), img, img.Bounds().Min, draw.Src)
	}
	return picture, nil
}
