package content

import (
	"archive/tar"
	"bufio"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// tocTreeOf reads all layers' tables into one tree.
func tocTreeOf(ctx context.Context, layers []*layerAt, limit Limits) (*tocTree, error) {
	t := newTOCTree(limit.orDefault())
	for i, l := range layers {
		err := l.s.eachTOC(l.m, func(e *tocEntry) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := t.add(i, e); err != nil {
				return fmt.Errorf("%.300q: %w", e.name, err)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("layer %d (%s): %w", i, l.ref.diff.digest(), err)
		}
	}
	return t, nil
}

// firstFiles names the files that a container of the image reads first: those
// that say who its user is, its program, and what that is linked to. It follows
// from the image alone. What cannot be found out is left out.
func firstFiles(ctx context.Context, s *Store, rawConfig []byte, refs []layerRef) ([]string, error) {
	cfg, err := decodeConfig(rawConfig)
	if err != nil {
		return nil, err
	}
	layers, err := openLayersAt(s, refs)
	if errors.Is(err, ErrTooLarge) {
		return nil, nil // as below
	}
	if err != nil {
		return nil, err
	}
	t, err := tocTreeOf(ctx, layers, Limits{})
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, nil //nolint:nilerr // no table, or layers that cannot be unpacked: nothing starts from it early
	}
	f := &firsts{t: t, layers: layers, cfg: cfg, seen: map[*treeFile]bool{}}
	for _, name := range []string{"etc/passwd", "etc/group"} {
		f.add(name)
	}
	f.command()
	for _, name := range []string{"etc/ld.so.cache", "etc/nsswitch.conf", "etc/localtime"} {
		f.add(name)
	}
	return f.names, nil
}

// firsts collects names.
type firsts struct {
	t      *tocTree
	layers []*layerAt
	cfg    ocispec.Image
	seen   map[*treeFile]bool
	names  []string
}

// add takes a file up, and says whether it is there and new.
func (f *firsts) add(name string) (*treeName, bool) {
	n, err := f.t.find(name)
	if err != nil || f.seen[n.file] || len(f.names) >= maxFirst {
		return nil, false
	}
	f.seen[n.file] = true
	f.names = append(f.names, n.path())
	return n, true
}

// command takes up the image's own command and the files it names.
func (f *firsts) command() {
	args := append(append([]string{}, f.cfg.Config.Entrypoint...), f.cfg.Config.Cmd...)
	if len(args) == 0 {
		args = []string{"/bin/sh"}
	}
	f.program(args[0], 0)
	for _, a := range args[1:] {
		if path.IsAbs(a) {
			f.program(a, 0)
		}
	}
}

// program takes up a program with what it needs, found as a shell would.
func (f *firsts) program(name string, depth int) {
	dirs := []string{""}
	switch {
	case strings.Contains(name, "/") && !path.IsAbs(name):
		dirs = []string{f.cfg.Config.WorkingDir}
	case !strings.Contains(name, "/"):
		dirs = f.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	for _, dir := range dirs {
		if n, ok := f.add(path.Join(dir, name)); ok {
			f.needs(n, depth)
			return
		}
	}
}

func (f *firsts) env(name, otherwise string) []string {
	for _, e := range f.cfg.Config.Env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return strings.Split(v, ":")
		}
	}
	return strings.Split(otherwise, ":")
}

// maxNeeds bounds how far needs are followed.
const maxNeeds = 32

// needs takes up the interpreter of a script or what an ELF file is linked to.
func (f *firsts) needs(n *treeName, depth int) {
	if depth > maxNeeds || n.file.kind != tar.TypeReg {
		return
	}
	body, err := f.layers[n.file.layer].open(n.file.entry)
	if err != nil {
		return
	}
	line, err := bufio.NewReaderSize(io.NewSectionReader(body, 0, 256), 256).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return
	}
	if script, ok := strings.CutPrefix(line, "#!"); ok {
		words := strings.Fields(script)
		for i, w := range words {
			if i == 0 || path.Base(words[0]) == "env" && !strings.HasPrefix(w, "-") {
				f.program(w, depth+1)
			}
		}
		return
	}
	if strings.HasPrefix(line, elf.ELFMAG) {
		f.linked(n, body, depth)
	}
}

// linked takes up the loader and the libraries an ELF file names.
func (f *firsts) linked(n *treeName, body *io.SectionReader, depth int) {
	e, err := elf.NewFile(body)
	if err != nil {
		return
	}
	for _, p := range e.Progs {
		if p.Type != elf.PT_INTERP || p.Filesz > maxPathLen {
			continue
		}
		if loader, err := io.ReadAll(p.Open()); err == nil {
			f.add(strings.TrimRight(string(loader), "\x00"))
		}
	}
	needed, err := e.DynString(elf.DT_NEEDED)
	if err != nil {
		return
	}
	dirs := f.libraryDirs(e, path.Dir(n.path()))
	for _, lib := range needed {
		for _, dir := range dirs {
			at := path.Join(dir, lib)
			if _, err := f.t.find(at); err != nil {
				continue
			}
			if l, ok := f.add(at); ok {
				f.needs(l, depth+1)
			}
			break
		}
	}
}

// libraryDirs is where the loader looks, as far as the file itself, the
// environment and custom say (man 8 ld.so).
func (f *firsts) libraryDirs(e *elf.File, origin string) []string {
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		paths, err := e.DynString(tag)
		if err != nil {
			continue
		}
		for _, p := range paths {
			p = strings.NewReplacer("${ORIGIN}", "/"+origin, "$ORIGIN", "/"+origin).Replace(p)
			dirs = append(dirs, strings.Split(p, ":")...)
		}
	}
	dirs = append(dirs, f.env("LD_LIBRARY_PATH", "/lib")...)
	triplet := map[elf.Machine]string{elf.EM_X86_64: "x86_64-linux-gnu", elf.EM_AARCH64: "aarch64-linux-gnu"}[e.Machine]
	return append(dirs, "/lib/"+triplet, "/usr/lib/"+triplet, "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib", "/usr/local/lib/"+triplet)
}
