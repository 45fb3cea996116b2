package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) imageFromCmd() *cobra.Command {
	var name string
	var entrypoint, files []string
	cmd := &cobra.Command{
		Use:   "from PROGRAM",
		Short: "Make an image of one static program",
		Long: "Make an image that holds one static Linux program at /NAME, an empty /tmp and the users root and nobody.\n" +
			"The same files make the same image. A program that needs an interpreter or libraries is refused.",
		Example: "  CGO_ENABLED=0 GOOS=linux go build -o app . && lumbung image from app\n" +
			"  lumbung image from app --name app:2 --file app.conf:/etc/app.conf --entrypoint /app --entrypoint --config=/etc/app.conf",
		Args: takes("PROGRAM"),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			r, err := fromRequest(args[0], name, entrypoint, files)
			if err != nil {
				return err
			}
			m := a.newMeter("making an image of " + filepath.Base(args[0]))
			im, err := c.ImageFrom(ctx, r, m.Update)
			m.Done()
			if err != nil {
				return err
			}
			return a.show(im, func(w io.Writer) { row(w, orElse(im.Name, im.ID), im.ID) })
		}),
	}
	fs := cmd.Flags()
	fs.StringVar(&name, "name", "", "`name` to give it (default the program's)")
	fs.StringArrayVar(&entrypoint, "entrypoint", nil, "what starts, `word` by word (default the program)")
	fs.StringArrayVar(&files, "file", nil, "`HOST:PATH`: a file that goes along")
	return a.withOutput(cmd)
}

func fromRequest(program, name string, entrypoint, files []string) (client.FromRequest, error) {
	abs, err := filepath.Abs(program)
	if err != nil {
		return client.FromRequest{}, fmt.Errorf("%s: %w", program, err)
	}
	r := client.FromRequest{Program: abs, Name: name, Entrypoint: entrypoint}
	for _, f := range files {
		i := strings.LastIndex(f, ":") // a path in an image has none, one of Windows may
		if i < 1 || !strings.HasPrefix(f[i+1:], "/") {
			return r, usageErrf("--file %q: write it HOST:PATH, with an absolute path, such as app.conf:/etc/app.conf", f)
		}
		from, err := filepath.Abs(f[:i])
		if err != nil {
			return r, fmt.Errorf("%s: %w", f, err)
		}
		r.Files = append(r.Files, client.FileInput{From: from, To: f[i+1:]})
	}
	return r, nil
}
