package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node"
	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) imageCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Images of the node's store"}
	cmd.AddCommand(a.imageLoadCmd(), a.imageFromCmd(), a.imageLsCmd(), a.imageRmCmd())
	return cmd
}

func (a *app) imageLoadCmd() *cobra.Command {
	var name, platform string
	cmd := &cobra.Command{
		Use:   "load FILE|DIR",
		Short: "Bring an image in: from a file, a folder, a registry, Docker or containerd",
		Long: `Bring an image in. The kind of a file or folder is found out; a word before it says it:

  docker-archive:FILE[:NAME]  what ` + "`docker save`" + ` writes
  oci:PATH[:NAME]             an OCI layout, as folder or tar
  rootfs:FOLDER               the root file system of a container
  docker://NAME               a registry, with the credentials of ` + "`docker login`" + ` on this machine
  docker+http://NAME          a registry without TLS, without credentials
  docker-daemon:NAME          Docker's or Podman's own store, through its socket
  containerd:NAME             containerd's store, out of its folder (/var/lib/containerd; also k3s' and RKE2's)

Files may be packed with gzip or zstd. A layer that is here already is not read again.`,
		Example: "  lumbung image load docker://debian:12\n  docker save app:1 | gzip > app.tar.gz && lumbung image load app.tar.gz",
		Args:    takes("FILE|DIR"),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			dir, err := os.Getwd()
			if err != nil {
				return fmt.Errorf("find the working folder: %w", err)
			}
			path := node.AbsoluteImage(args[0], dir)
			m := a.newMeter("loading " + filepath.Base(args[0]))
			im, err := c.LoadImage(ctx, client.PathRequest{Path: path, Name: name, Platform: platform}, m.Update)
			m.Done()
			if err != nil {
				return err
			}
			return a.show(im, func(w io.Writer) { row(w, orElse(im.Name, im.ID), im.ID) })
		}),
	}
	cmd.Flags().StringVar(&name, "name", "", "`name` to give it (default its own)")
	cmd.Flags().StringVar(&platform, "platform", "", "`os/arch` to take of an image for several (default linux/amd64, what providers run)")
	return a.withOutput(cmd)
}

func (a *app) imageLsCmd() *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use:   "ls",
		Short: "List the images",
		Args:  takes(),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			images, err := c.Images(ctx)
			if err != nil {
				return err
			}
			return showList(a, images, func(w io.Writer) {
				row(w, "NAME", "ID", "PLATFORM", "LAYERS", "SIZE", "LOADED", "CID")
				for _, im := range images {
					id := strings.TrimPrefix(im.ID, "sha256:")
					row(w, orDash(im.Name), id[:min(12, len(id))], im.Platform, im.Layers, sizeText(im.Size), ageText(im.Created, a.now()), im.CID)
				}
			})
		}),
	})
}

func (a *app) imageRmCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "rm IMAGE…",
		Short:             "Forget images; `lumbung gc` then gives their room back",
		Args:              takes("IMAGE…"),
		ValidArgsFunction: a.completeImages,
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			for _, ref := range args {
				if err := c.RemoveImage(ctx, ref); err != nil {
					return err
				}
				a.con.Notef("forgot %s", ref)
			}
			return nil
		}),
	}
}
