package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
)

// ExportOptions configures ExportWith. The zero value is safe for content from
// a stranger.
type ExportOptions struct {
	// Limits bounds what may be written.
	Limits Limits
	// KeepOutsideLinks also makes symbolic links that are absolute or lead out
	// of the folder. Nothing is ever written through them, but programs that
	// read the folder follow them.
	KeepOutsideLinks bool
	// Progress, if set, is called as bytes are written.
	Progress func(Progress)
}

// Exported says what an export wrote.
type Exported struct {
	Bytes   uint64
	Files   uint64   // files, folders and links
	Skipped []string // links left out because they lead outside; the first 100
}

// Export writes the file or folder under root to dest with default options.
// Links that lead outside are left out and named in the store's log.
func Export(ctx context.Context, s *Store, root cid.Cid, dest string) error {
	ex, err := ExportWith(ctx, s, root, dest, ExportOptions{})
	if len(ex.Skipped) > 0 {
		s.log.Warn("links that lead outside were left out", "dest", dest, "links", ex.Skipped)
	}
	return err
}

// ExportWith writes the file or folder under root to dest. A folder is written
// into dest, which may be there: a file of the same name is replaced at once,
// others stay. A file or link where a folder must go, or the other way round,
// is an error. Permissions are restored, set-id bits are not. What would unfold
// to more than the limits is refused before anything is written.
func ExportWith(ctx context.Context, s *Store, root cid.Cid, dest string, o ExportOptions) (Exported, error) {
	defer s.Hold(root)()
	o.Limits = o.Limits.orDefault()
	e := &exporter{ctx: ctx, d: dagService{ctx, s}, o: o}
	if err := e.run(root, dest); err != nil {
		return e.st, fmt.Errorf("export %s to %s: %w", root, dest, err)
	}
	e.say("done")
	return e.st, nil
}

type exporter struct {
	ctx  context.Context
	d    dagService
	o    ExportOptions
	st   Exported
	size uint64
	room *diskRoom
}

func (e *exporter) say(phase string) {
	if e.o.Progress != nil {
		e.o.Progress(Progress{Phase: phase, Done: e.st.Bytes, Total: e.size, Files: e.st.Files})
	}
}

func (e *exporter) run(root cid.Cid, dest string) error {
	n, err := e.d.find(e.ctx, root, "")
	if err != nil {
		return err
	}
	sum, err := e.d.weigh(e.ctx, n, e.o.Limits)
	if err != nil {
		return err
	}
	e.size = sum.bytes
	e.room = &diskRoom{dir: filepath.Dir(filepath.Clean(dest)), free: freeSpace}
	if n.kind == EntryFolder {
		if err := os.MkdirAll(dest, 0o755); err != nil {
			return err
		}
		dir, err := os.OpenRoot(dest)
		if err != nil {
			return err
		}
		defer func() { _ = dir.Close() }()
		return e.folder(dir, n, "", 0)
	}
	parent, base := filepath.Split(filepath.Clean(dest))
	if parent == "" {
		parent = "."
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	dir, err := os.OpenRoot(parent)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	return e.entry(dir, base, n, base, 0)
}

// folder writes the entries of n into dir, then dir's mode.
func (e *exporter) folder(dir *os.Root, n node, at string, depth int) error {
	if depth > maxAddDepth {
		return fmt.Errorf("%w: folders more than %d deep", ErrTooLarge, maxAddDepth)
	}
	fi, err := dir.Stat(".")
	if err != nil {
		return err
	}
	if fi.Mode()&0o700 != 0o700 {
		if err := dir.Chmod(".", fi.Mode().Perm()|0o700); err != nil {
			return err
		}
	}
	err = e.d.eachEntry(e.ctx, n, func(l *format.Link) error {
		r, err := refOf(l.Cid)
		if err != nil {
			return err
		}
		c, err := e.d.node(r)
		if err != nil {
			return err
		}
		return e.entry(dir, l.Name, c, path.Join(at, l.Name), depth)
	})
	if err != nil {
		return err
	}
	if mode, told := n.mode(); told {
		if err := dir.Chmod(".", mode.Perm()); err != nil {
			return err
		}
	} else if fi.Mode()&0o700 != 0o700 {
		if err := dir.Chmod(".", fi.Mode().Perm()); err != nil {
			return err
		}
	}
	return setTime(dir, ".", n.modTime())
}

func setTime(dir *os.Root, name string, t time.Time) error {
	if t.IsZero() {
		return nil
	}
	return dir.Chtimes(name, time.Time{}, t)
}

// entry writes one entry of any kind.
func (e *exporter) entry(dir *os.Root, name string, n node, at string, depth int) error {
	if e.st.Files++; e.st.Files > e.o.Limits.Entries {
		return fmt.Errorf("%w: more than %d files, folders and links", ErrTooLarge, e.o.Limits.Entries)
	}
	var err error
	switch n.kind {
	case EntryFile:
		err = e.file(dir, name, n)
	case EntrySymlink:
		err = e.link(dir, name, n, at)
	default:
		err = e.subfolder(dir, name, n, at, depth)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	return nil
}

func (e *exporter) subfolder(dir *os.Root, name string, n node, at string, depth int) error {
	if err := dir.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	fi, err := dir.Lstat(name)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%w: a folder should go where a %s is; move it away", fs.ErrExist, kindOf(fi.Mode()))
	}
	sub, err := dir.OpenRoot(name)
	if err != nil {
		return err
	}
	return errors.Join(e.folder(sub, n, at, depth+1), sub.Close())
}

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsRegular():
		return EntryFile
	case m.IsDir():
		return EntryFolder
	case m&fs.ModeSymlink != 0:
		return EntrySymlink
	}
	return "special file"
}

// clearFor refuses to replace a folder by a file or a link.
func clearFor(dir *os.Root, name string) error {
	fi, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && fi.IsDir() {
		err = fmt.Errorf("%w: a folder is in the way; move it away", fs.ErrExist)
	}
	return err
}

func (e *exporter) file(dir *os.Root, name string, n node) error {
	mode, told := n.mode()
	return replaceFile(dir, name, func(f *os.File) error {
		if err := e.d.write(e.ctx, n, &exportWriter{e, f}, 0); err != nil || !told {
			return err
		}
		return f.Chmod(mode.Perm())
	}, n.modTime())
}

// replaceFile writes beside and renames, so that a reader sees the old bytes or
// the new.
func replaceFile(dir *os.Root, name string, write func(*os.File) error, changed time.Time) error {
	if err := clearFor(dir, name); err != nil {
		return err
	}
	tmp := partName(name)
	_ = dir.Remove(tmp) // of a run that was killed
	f, err := dir.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	err = errors.Join(write(f), f.Close())
	if err == nil {
		err = setTime(dir, tmp, changed)
	}
	if err == nil {
		err = dir.Rename(tmp, name)
	}
	if err != nil {
		_ = dir.Remove(tmp)
	}
	return err
}

// partName is where a file is written before it takes its name.
func partName(name string) string {
	k := rawRef([]byte(name)).key
	return ".lumbung-" + k.digest()[len("sha256:"):][:16] + ".part"
}

// link makes a symbolic link, if it stays inside or may lead outside.
func (e *exporter) link(dir *os.Root, name string, n node, at string) error {
	if n.target == "" || len(n.target) > maxPathLen || strings.ContainsRune(n.target, 0) {
		return fmt.Errorf("%w: link target", ErrUnsafe)
	}
	if !staysInside(path.Dir(at), n.target) && !e.o.KeepOutsideLinks {
		if len(e.st.Skipped) < 100 {
			e.st.Skipped = append(e.st.Skipped, at)
		}
		return nil
	}
	if err := clearFor(dir, name); err != nil {
		return err
	}
	tmp := partName(name)
	_ = dir.Remove(tmp)
	if err := dir.Symlink(filepath.FromSlash(n.target), tmp); err != nil {
		return err
	}
	if err := dir.Rename(tmp, name); err != nil {
		_ = dir.Remove(tmp)
		return err
	}
	return nil
}

// staysInside says whether a link in folder dir, target, leads to something in
// the exported tree. Climbing back after going down is refused: what it went
// down through may be a link itself.
func staysInside(dir, target string) bool {
	if path.IsAbs(target) || filepath.IsAbs(target) || !filepath.IsLocal(filepath.FromSlash(path.Join(dir, target))) {
		return false
	}
	down := false
	for c := range strings.SplitSeq(target, "/") {
		switch c {
		case "", ".":
		case "..":
			if down {
				return false
			}
		default:
			down = true
		}
	}
	return true
}

// exportWriter counts and bounds what is written.
type exportWriter struct {
	e *exporter
	w io.Writer
}

func (w *exportWriter) Write(p []byte) (int, error) {
	if w.e.st.Bytes+uint64(len(p)) > w.e.o.Limits.Bytes {
		return 0, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, w.e.o.Limits.Bytes)
	}
	n, err := w.w.Write(p)
	w.e.st.Bytes += uint64(n)
	w.e.say("files")
	if err == nil {
		err = w.e.room.took(n)
	}
	return n, err
}
