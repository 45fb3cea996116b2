package content

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// loadRootfs makes an image with one layer out of a folder. The tar is the
// same for the same folder: names in order, whole seconds, and the owner kept
// only for root, since elsewhere it is whoever unpacked the folder.
func (l *loader) loadRootfs(dir string) (Image, error) {
	if !l.asked { // a folder says nothing: it is taken for one of this machine's
		l.o.Platform = "linux/" + runtime.GOARCH
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Image{}, err
	}
	defer func() { _ = root.Close() }()
	l.begin("files", treeSize(root))
	r, err := l.importWritten(func(w io.Writer) error { return writeRootfs(l.ctx, root, w) })
	if err != nil {
		return Image{}, err
	}
	if l.o.Name == "" {
		if abs, err := filepath.Abs(dir); err == nil {
			l.o.Name = strings.ToLower(filepath.Base(abs))
		}
	}
	return l.finishPlain(r, ocispec.ImageConfig{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}})
}

// finishPlain makes an image of one layer with a config of our own.
func (l *loader) finishPlain(r layerRef, c ocispec.ImageConfig) (Image, error) {
	p := strings.SplitN(l.o.Platform, "/", 3)
	if len(p) < 2 {
		return Image{}, loadErr(CodeBadRef, "name it like linux/amd64", "platform %q: want os/architecture", l.o.Platform)
	}
	var cfg ocispec.Image
	cfg.OS, cfg.Architecture, cfg.Config = p[0], p[1], c
	if len(p) == 3 {
		cfg.Variant = p[2]
	}
	cfg.RootFS.Type = "layers"
	cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digestOf(r.diff))
	raw, err := json.Marshal(cfg)
	if err != nil {
		return Image{}, err
	}
	return l.finish(raw, []layerRef{r})
}

// importWritten imports the tar that write writes.
func (l *loader) importWritten(write func(io.Writer) error) (layerRef, error) {
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = pw.CloseWithError(write(pw)) // always nil
	}()
	in := &writtenReader{r: pr, left: &budget{left: l.o.MaxBytes}, tick: l.tick}
	r, err := l.importTar(l.ctx, in, func() { _ = pr.Close() })
	_ = pr.CloseWithError(errors.Join(err, io.ErrClosedPipe)) // always nil
	<-done
	return r, err
}

// writtenReader counts what is made here.
type writtenReader struct {
	r    io.Reader
	left *budget
	tick func(int)
}

func (r *writtenReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if !r.left.take(uint64(n)) { //nolint:gosec // not negative
		return 0, errOverBudget()
	}
	r.tick(n)
	return n, err
}

// walkRoot calls f for all below a folder, in the order of names. Unlike
// fs.WalkDir it takes names that are no UTF-8.
func walkRoot(root *os.Root, dir string, depth int, f func(name string, fi fs.FileInfo) error) error {
	if depth > maxAddDepth {
		return fmt.Errorf("%s: %w: folders more than %d deep", dir, ErrTooLarge, maxAddDepth)
	}
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if dir != "." {
			name = dir + "/" + name
		}
		fi, err := root.Lstat(name)
		if err == nil {
			err = f(name, fi)
		}
		if err == nil && fi.IsDir() {
			err = walkRoot(root, name, depth+1, f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// treeSize is about how long the tar of a folder will be; 0 if that cannot be
// told, which is said when the folder is read.
func treeSize(root *os.Root) uint64 {
	total := uint64(1024)
	err := walkRoot(root, ".", 0, func(_ string, fi fs.FileInfo) error {
		total += 512
		if fi.Mode().IsRegular() {
			total += uint64(fi.Size()) //nolint:gosec // a file's size
		}
		return nil
	})
	if err != nil {
		return 0
	}
	return total
}

// writeRootfs writes the folder as a tar. Sockets, pipes and devices are left out.
func writeRootfs(ctx context.Context, root *os.Root, w io.Writer) error {
	tw := tar.NewWriter(w)
	links := map[fileID]string{}
	err := walkRoot(root, ".", 0, func(name string, fi fs.FileInfo) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return writeEntry(root, tw, name, fi, links)
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

func writeEntry(root *os.Root, tw *tar.Writer, name string, fi fs.FileInfo, links map[fileID]string) (err error) {
	if fi.Mode()&(fs.ModeSocket|fs.ModeNamedPipe|fs.ModeDevice|fs.ModeIrregular) != 0 {
		return nil
	}
	target := ""
	if fi.Mode()&fs.ModeSymlink != 0 {
		if target, err = root.Readlink(name); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(fi, target)
	if err != nil {
		return err
	}
	h.Name = name
	if fi.IsDir() {
		h.Name += "/"
	}
	h.Uname, h.Gname, h.Format = "", "", tar.FormatPAX
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	h.ModTime = h.ModTime.Truncate(time.Second)
	if runtime.GOOS == "windows" || os.Geteuid() != 0 {
		h.Uid, h.Gid = 0, 0
	}
	if id, ok := hardLinked(fi); ok {
		if first, seen := links[id]; seen {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		} else {
			links[id] = name
		}
	}
	var f *os.File
	if h.Typeflag == tar.TypeReg {
		if f, err = root.Open(name); err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if h.PAXRecords, err = xattrsOf(f); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := tw.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if f == nil {
		return nil
	}
	if _, err = io.Copy(tw, io.LimitReader(f, h.Size)); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// fileID tells whether two names are one file.
type fileID struct{ dev, ino uint64 }
