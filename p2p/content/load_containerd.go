package content

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"
)

// Where containerd keeps its things.
const (
	containerdContent = "io.containerd.content.v1.content"
	containerdMeta    = "io.containerd.metadata.v1.bolt/meta.db"
)

// containerdRoots are the usual folders of containerd, that in Docker and those
// in k3s and RKE2.
func containerdRoots() []string {
	roots := []string{
		"/var/lib/containerd", "/var/lib/docker/containerd/daemon",
		"/var/lib/rancher/k3s/agent/containerd", "/var/lib/rancher/rke2/agent/containerd",
	}
	if data := os.Getenv("XDG_DATA_HOME"); data != "" {
		return append(roots, filepath.Join(data, "containerd"))
	}
	if home, err := os.UserHomeDir(); err == nil {
		return append(roots, filepath.Join(home, ".local", "share", "containerd"))
	}
	return roots
}

// containerdRoot is the first of them that is there.
func containerdRoot() string {
	roots := containerdRoots()
	for _, dir := range roots {
		if _, err := os.Stat(filepath.Join(dir, containerdContent)); err == nil || errors.Is(err, fs.ErrPermission) {
			return dir
		}
	}
	return roots[0]
}

// Bounds on the copy of containerd's database.
const (
	maxMetaDB   = 1 << 30
	metaDBTries = 20
)

// loadContainerd imports from containerd's content store without containerd:
// blobs are files named by their digests, and its database says which one an
// image's name means.
func (l *loader) loadContainerd(name string) (Image, error) {
	dir := l.o.containerd
	if dir == "" {
		dir = containerdRoot()
	}
	root, err := os.OpenRoot(filepath.Join(dir, containerdContent))
	if err != nil {
		return Image{}, noContainerd(dir, name, err)
	}
	defer func() { _ = root.Close() }()
	d, called, err := l.containerdTarget(filepath.Join(dir, filepath.FromSlash(containerdMeta)), name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return Image{}, noContainerd(dir, name, err)
	}
	if err != nil {
		return Image{}, err
	}
	if l.o.Name == "" {
		l.o.Name = called
	}
	img, err := l.loadIndex(folder{root}, ocispec.Index{Manifests: []ocispec.Descriptor{d}}, "")
	if errors.Is(err, fs.ErrNotExist) {
		return img, loadErr(CodeNoStore, "load it from where it came: docker://"+called,
			"containerd has not kept all of %s, as when it pulled one platform or drops layers that it has unpacked: %w", called, err)
	}
	return img, err
}

func noContainerd(dir, name string, err error) error {
	remedy := "load it from where it came: docker://" + name
	if errors.Is(err, fs.ErrPermission) {
		remedy = "have somebody who may read it export the image, and load the file: sudo ctr images export image.tar " + name
	}
	return loadErr(CodeNoStore, remedy, "%w: containerd's store in %s cannot be read: %w", ErrNoImage, dir, err)
}

// containerdTarget looks an image up by name. A running containerd keeps its
// database locked, so a copy is read.
func (l *loader) containerdTarget(path, name string) (ocispec.Descriptor, string, error) {
	tmp, err := copyMetaDB(l.ctx, path, l.s.dir)
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	defer func() { _ = os.Remove(tmp) }()
	db, err := bbolt.Open(tmp, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return ocispec.Descriptor{}, "", fmt.Errorf("containerd's database %s: %w: %w", path, ErrMalformed, err)
	}
	var found containerdImages
	err = db.View(func(tx *bbolt.Tx) error { return found.read(tx) })
	if err = errors.Join(err, db.Close()); err != nil {
		return ocispec.Descriptor{}, "", fmt.Errorf("containerd's database %s: %w", path, err)
	}
	return found.pick(name)
}

// copyMetaDB copies a bolt database of another process. Bolt writes pages that
// the current of its two head pages does not lead to, and that head last: a copy
// between two equal readings of the heads is whole.
func copyMetaDB(ctx context.Context, path, dir string) (_ string, err error) {
	src, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = src.Close() }()
	tmp, err := os.CreateTemp(dir, "containerd-*.tmp")
	if err != nil {
		return "", err
	}
	defer func() {
		if err = errors.Join(err, tmp.Close()); err != nil {
			err = fmt.Errorf("copy containerd's database %s: %w", path, errors.Join(err, os.Remove(tmp.Name())))
		}
	}()
	heads := make([]byte, 2*os.Getpagesize())
	for range metaDBTries {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		if _, err := src.ReadAt(heads, 0); err != nil {
			return "", fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		if err := copyOver(tmp, src); err != nil {
			return "", err
		}
		again := make([]byte, len(heads))
		if _, err := src.ReadAt(again, 0); err != nil {
			return "", fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		if slices.Equal(heads, again) {
			return tmp.Name(), nil
		}
	}
	return "", errors.New("it changes all the time; try again when containerd is quieter")
}

func copyOver(dst, src *os.File) error {
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	if fi.Size() > maxMetaDB {
		return fmt.Errorf("%w: %d bytes, over %d", ErrTooLarge, fi.Size(), maxMetaDB)
	}
	if err := dst.Truncate(0); err != nil {
		return err
	}
	_, err = io.Copy(io.NewOffsetWriter(dst, 0), io.NewSectionReader(src, 0, fi.Size()))
	return err
}

// containerdImages are the images of all namespaces.
type containerdImages []containerdImage

type containerdImage struct {
	namespace, name string
	target          ocispec.Descriptor
}

// read goes through v1/NAMESPACE/images/NAME/target, as containerd's
// metadata/buckets.go lays it out.
func (c *containerdImages) read(tx *bbolt.Tx) error {
	v1 := tx.Bucket([]byte("v1"))
	if v1 == nil {
		return nil
	}
	return v1.ForEachBucket(func(ns []byte) error {
		images := v1.Bucket(ns).Bucket([]byte("images"))
		if images == nil {
			return nil
		}
		return images.ForEachBucket(func(name []byte) error {
			target := images.Bucket(name).Bucket([]byte("target"))
			if target == nil {
				return nil
			}
			d := ocispec.Descriptor{
				MediaType: string(target.Get([]byte("mediatype"))),
				Digest:    digest.Digest(target.Get([]byte("digest"))),
			}
			d.Size, _ = binary.Varint(target.Get([]byte("size")))
			*c = append(*c, containerdImage{string(ns), string(name), d})
			return nil
		})
	})
}

// pick finds the image that NAME or NAMESPACE/NAME means, as nerdctl would: a
// name without a registry is one of Docker's.
func (c containerdImages) pick(name string) (ocispec.Descriptor, string, error) {
	wanted := []string{name}
	if ref, err := parseRegistryRef(name, false); err == nil {
		full := strings.Replace(ref.Name(), "index.docker.io/", "docker.io/", 1)
		wanted = append(wanted, full)
	}
	var fit []containerdImage
	var names []string
	for _, im := range c {
		if slices.Contains(wanted, im.name) || im.namespace+"/"+im.name == name {
			fit = append(fit, im)
		}
		if len(names) < 50 {
			names = append(names, im.namespace+"/"+im.name)
		}
	}
	for _, im := range fit[min(1, len(fit)):] {
		if im.target.Digest != fit[0].target.Digest {
			return ocispec.Descriptor{}, "", loadErr(CodeNoImage, fmt.Sprintf("name one as containerd:%s/%s", im.namespace, im.name),
				"%w: containerd has different images %s in several namespaces: %s", ErrNoImage, name, strings.Join(names, ", "))
		}
	}
	if len(fit) == 0 {
		return ocispec.Descriptor{}, "", loadErr(CodeNoImage, "pull it, or load it from a registry: docker://"+name,
			"%w: containerd has no image %s; there are: %s", ErrNoImage, name, strings.Join(names, ", "))
	}
	return fit[0].target, fit[0].name, nil
}
