// Command tiles draws the tiles that it is given and writes them as PNG files:
// the work of one task of `lumbung demo`. The tiles are those from LUMBUNG_FIRST
// to LUMBUNG_LAST, which an array job sets, or the numbers on the command line.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/lumbung-net/lumbung/examples/tiles/render"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tiles:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	dir := "/out"
	if len(args) > 0 {
		dir, args = args[0], args[1:]
	}
	first, last := os.Getenv("LUMBUNG_FIRST"), os.Getenv("LUMBUNG_LAST")
	if len(args) == 2 {
		first, last = args[0], args[1]
	}
	from, err := strconv.Atoi(first)
	if err != nil {
		return fmt.Errorf("first tile (LUMBUNG_FIRST): %w; usage: tiles [DIR [FIRST LAST]]", err)
	}
	to, err := strconv.Atoi(last)
	if err != nil {
		return fmt.Errorf("last tile (LUMBUNG_LAST): %w; usage: tiles [DIR [FIRST LAST]]", err)
	}
	for n := from; n <= to; n++ {
		if err := draw(dir, n); err != nil {
			return err
		}
	}
	return nil
}

func draw(dir string, n int) error {
	began := time.Now()
	img, err := render.Tile(n)
	if err != nil {
		return err
	}
	raw, err := render.Encode(img)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, render.Name(n)), raw, 0o644); err != nil { //nolint:gosec // a picture for everybody
		return err
	}
	fmt.Printf("tile %d: %d bytes in %s\n", n, len(raw), time.Since(began).Round(time.Millisecond))
	return nil
}
