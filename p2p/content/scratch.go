package content

import (
	"archive/tar"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var errNoProgram = errors.New("no static program")

// maxScratchFiles bounds the files that go along with the program.
const maxScratchFiles = 1 << 12

// ScratchFile is a file that goes into a scratch image beside the program.
type ScratchFile struct {
	From string // on this machine
	To   string // in the image, absolute
}

// ScratchOptions configures FromBinary.
type ScratchOptions struct {
	// Name is what to call the image; empty is the program's own name.
	Name string
	// Entrypoint is what starts; empty is the program. The program lies at
	// /NAME, where NAME is the last part of its path.
	Entrypoint []string
	// Files go along, with 0755 for those that anybody may execute, else 0644.
	Files []ScratchFile
	// Progress, if set, is called as bytes are in.
	Progress func(Progress)
}

// machines are the architectures of Go, and of images, by the machine of ELF.
var machines = map[elf.Machine]string{
	elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64", elf.EM_RISCV: "riscv64", elf.EM_PPC64: "ppc64le", elf.EM_S390: "s390x",
	elf.EM_386: "386", elf.EM_ARM: "arm",
}

// FromBinary makes an image of one static Linux program: the program, /tmp, and
// users root and nobody. The same files make the same image.
//
// Hold puts until the root is kept by something else: see Store.HoldPuts.
func FromBinary(ctx context.Context, s *Store, program string, o ScratchOptions) (Image, error) {
	arch, err := staticArch(program)
	if err != nil {
		return Image{}, err
	}
	files, err := scratchFiles(program, o)
	if err != nil {
		return Image{}, err
	}
	if o.Name == "" {
		o.Name = strings.ToLower(filepath.Base(program))
	}
	if len(o.Entrypoint) == 0 {
		o.Entrypoint = []string{"/" + filepath.Base(program)}
	}
	defer s.HoldPuts()()
	l := newLoader(ctx, s, LoadOptions{Name: o.Name, Platform: "linux/" + arch, Progress: o.Progress})
	img, err := l.loadScratch(files, o.Entrypoint)
	if err == nil {
		err = s.Sync()
	}
	if err == nil {
		err = l.remember(img)
	}
	if err != nil {
		return Image{}, fmt.Errorf("image of %s: %w", program, err)
	}
	l.done(img)
	return img, nil
}

// staticArch returns the architecture of a static Linux program, and refuses
// what would not start alone.
func staticArch(program string) (string, error) {
	const build = "give a static Linux program; Go makes one with: CGO_ENABLED=0 GOOS=linux go build; C with: cc -static; Rust with: --target x86_64-unknown-linux-musl"
	f, err := elf.Open(program)
	var format *elf.FormatError
	if errors.As(err, &format) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "", loadErr(CodeBadRef, build, "%w: %s is no ELF program (%w)", errNoProgram, program, err)
	}
	if err != nil {
		return "", &LoadError{Code: CodeBadRef, Remedy: build, Err: err}
	}
	defer func() { _ = f.Close() }()
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return "", loadErr(CodeBadRef, build, "%w: %s is an ELF file of type %s, no program", errNoProgram, program, f.Type)
	}
	if f.OSABI != elf.ELFOSABI_NONE && f.OSABI != elf.ELFOSABI_LINUX {
		return "", loadErr(CodeBadRef, build, "%w: %s is for %s, not for Linux", errNoProgram, program, f.OSABI)
	}
	if err := refuseDynamic(f, program); err != nil {
		return "", err
	}
	arch, ok := machines[f.Machine]
	if !ok || f.Machine == elf.EM_PPC64 && f.Data != elf.ELFDATA2LSB {
		return "", loadErr(CodeBadRef, build, "%w: %s is for the machine %s, which no image names", errNoProgram, program, f.Machine)
	}
	return arch, nil
}

// maxInterp bounds the name of an interpreter: PATH_MAX.
const maxInterp = 4096

func refuseDynamic(f *elf.File, program string) error {
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		raw, err := io.ReadAll(io.LimitReader(p.Open(), maxInterp))
		if err != nil {
			return loadErr(CodeBadRef, "build it again", "%w: %s: its interpreter cannot be read: %w", errNoProgram, program, err)
		}
		interp := strings.TrimRight(string(raw), "\x00")
		libs, err := f.ImportedLibraries()
		if err != nil {
			libs = nil // the interpreter says enough
		}
		needs := "no libraries"
		if len(libs) > 0 {
			needs = strings.Join(libs[:min(len(libs), 8)], ", ")
		}
		return loadErr(CodeBadRef,
			"link it statically (Go: CGO_ENABLED=0; C: -static; Rust: a musl target), or load a whole root file system: lumbung image load FOLDER",
			"%w: %s is linked dynamically: alone it would not start, for %q is missing, and it needs %s", errNoProgram, program, interp, needs)
	}
	return nil
}

// scratchFiles is what goes into the image, in order, checked.
func scratchFiles(program string, o ScratchOptions) ([]ScratchFile, error) {
	files := append([]ScratchFile{{program, "/" + filepath.Base(program)}}, o.Files...)
	if len(files) > maxScratchFiles {
		return nil, loadErr(CodeBadRef, "make a folder of them and load that: lumbung image load FOLDER", "%w: %d files, over %d", ErrTooLarge, len(files), maxScratchFiles)
	}
	for i, f := range files {
		if !strings.HasPrefix(f.To, "/") || path.Clean(f.To) != f.To || f.To == "/" || strings.ContainsRune(f.To, 0) {
			return nil, loadErr(CodeBadRef, "name it like /etc/app.conf", "%w: %q is no absolute path of a file in the image", ErrMalformed, f.To)
		}
		files[i].To = f.To[1:]
	}
	slices.SortStableFunc(files, func(a, b ScratchFile) int { return strings.Compare(a.To, b.To) })
	for i := 1; i < len(files); i++ {
		if files[i].To == files[i-1].To {
			return nil, loadErr(CodeBadRef, "give each its own", "%w: two files for /%s", ErrMalformed, files[i].To)
		}
	}
	return files, nil
}

func (l *loader) loadScratch(files []ScratchFile, entrypoint []string) (Image, error) {
	l.begin("files", 0)
	r, err := l.importWritten(func(w io.Writer) error { return writeScratch(l.ctx, w, files) })
	if err != nil {
		return Image{}, err
	}
	return l.finishPlain(r, ocispec.ImageConfig{Entrypoint: entrypoint, Env: []string{"PATH=/"}, WorkingDir: "/"})
}

// The users of a scratch image.
const (
	scratchPasswd = "root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n"
	scratchGroup  = "root:x:0:\nnobody:x:65534:\n"
)

// scratchWriter writes the one layer; nothing in it depends on when or where.
type scratchWriter struct {
	tw   *tar.Writer
	made map[string]bool
}

func writeScratch(ctx context.Context, w io.Writer, files []ScratchFile) error {
	sw := scratchWriter{tar.NewWriter(w), map[string]bool{}}
	has := func(name string) bool {
		return slices.ContainsFunc(files, func(f ScratchFile) bool { return f.To == name })
	}
	if err := sw.dir("tmp", 0o1777); err != nil {
		return err
	}
	for _, f := range []struct{ name, text string }{{"etc/group", scratchGroup}, {"etc/passwd", scratchPasswd}} {
		if has(f.name) {
			continue
		}
		if err := sw.file(f.name, 0o644, int64(len(f.text)), strings.NewReader(f.text)); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := sw.copy(f); err != nil {
			return fmt.Errorf("%s: %w", f.From, err)
		}
	}
	return sw.tw.Close()
}

func (w *scratchWriter) dir(name string, mode int64) error {
	if name == "." || w.made[name] {
		return nil
	}
	if err := w.dir(path.Dir(name), 0o755); err != nil {
		return err
	}
	w.made[name] = true
	return w.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

func (w *scratchWriter) copy(from ScratchFile) error {
	f, err := os.Open(from.From)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%w: no file", ErrMalformed)
	}
	mode := int64(0o644)
	if fi.Mode().Perm()&0o111 != 0 {
		mode = 0o755
	}
	return w.file(from.To, mode, fi.Size(), f)
}

func (w *scratchWriter) file(name string, mode, size int64, r io.Reader) error {
	if err := w.dir(path.Dir(name), 0o755); err != nil {
		return err
	}
	err := w.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: size, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
	if err == nil {
		_, err = io.CopyN(w.tw, r, size)
	}
	return err
}
