package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/api"
	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/p2p/content"
)

// AbsoluteImage makes the path in a reference to an image absolute, as seen
// from dir; names in registries and stores stay as they are.
func AbsoluteImage(ref, dir string) string {
	prefix, rest, local := content.CutImageForm(ref)
	if local && rest != "" && !filepath.IsAbs(rest) {
		rest = filepath.Join(dir, rest)
	}
	return prefix + rest
}

// ImageFrom implements api.Backend.
func (b backend) ImageFrom(ctx context.Context, r client.FromRequest, progress func(client.Progress)) (client.Image, error) {
	im, err := b.n.images.add(ctx, func() (content.Image, error) {
		o := content.ScratchOptions{Name: r.Name, Entrypoint: r.Entrypoint, Progress: passOn(meter(progress))}
		for _, f := range r.Files {
			o.Files = append(o.Files, content.ScratchFile{From: f.From, To: f.To})
		}
		return content.FromBinary(ctx, b.n.blocks, r.Program, o)
	})
	if err != nil {
		return client.Image{}, badContent(err)
	}
	return b.stored(ctx, im)
}

func (b backend) stored(ctx context.Context, im content.Image) (client.Image, error) {
	stored, err := b.n.db.Image(ctx, im.Name)
	if err != nil {
		return client.Image{}, err
	}
	return imageOf(stored), nil
}

// loadStatus are the statuses of HTTP for what can be wrong with an image's source.
var loadStatus = map[string]int{
	content.CodeBadRef:      http.StatusUnprocessableEntity,
	content.CodeNoImage:     http.StatusNotFound,
	content.CodeNoPlatform:  http.StatusNotFound,
	content.CodeNoStore:     http.StatusNotFound,
	content.CodeDenied:      http.StatusForbidden,
	content.CodeUnreachable: http.StatusBadGateway,
}

// badContent tells a user's bad file from the node's own failure.
func badContent(err error) error {
	var told *content.LoadError
	if errors.As(err, &told) {
		return &api.Error{Status: loadStatus[told.Code], Code: told.Code, Err: err, Remedy: told.Remedy, Retryable: told.Retryable}
	}
	for _, is := range []error{content.ErrMalformed, content.ErrMismatch, content.ErrTooLarge} {
		if errors.Is(err, is) {
			return &api.Error{
				Status: http.StatusUnprocessableEntity, Code: "bad_content", Err: err,
				Remedy: "get the image again; one that loads is " + content.ImageForms,
			}
		}
	}
	return err
}

// noSuchImage is the answer to a name that nothing has.
func noSuchImage(path string) error {
	return &api.Error{
		Status: http.StatusNotFound, Code: content.CodeNoImage,
		Err:    fmt.Errorf("no image of that name or id, and no file or folder %s: %w", path, job.ErrNotFound),
		Remedy: "`lumbung image ls` lists the images there are; any other is named in one of these forms: " + content.ImageForms,
	}
}
