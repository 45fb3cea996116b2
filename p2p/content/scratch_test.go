package content

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// program writes an ELF program that has nothing but its headers, and maybe an
// interpreter.
func program(t *testing.T, machine elf.Machine, osabi elf.OSABI, interp string) string {
	t.Helper()
	const head, prog = 64, 56
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1, Entry: 0x400000,
		Phoff: head, Ehsize: head, Phentsize: prog, Phnum: 1, Shentsize: 64,
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	h.Ident[elf.EI_OSABI] = byte(osabi)
	p := elf.Prog64{Type: uint32(elf.PT_LOAD), Filesz: head + prog, Memsz: head + prog, Align: 4096}
	if interp != "" {
		p = elf.Prog64{Type: uint32(elf.PT_INTERP), Off: head + prog, Filesz: uint64(len(interp) + 1), Memsz: uint64(len(interp) + 1)}
	}
	var buf bytes.Buffer
	noErr(t, binary.Write(&buf, binary.LittleEndian, h))
	noErr(t, binary.Write(&buf, binary.LittleEndian, p))
	buf.WriteString(interp + "\x00")
	path := filepath.Join(t.TempDir(), "hello")
	noErr(t, os.WriteFile(path, buf.Bytes(), 0o700))
	return path
}

func TestFromBinary(t *testing.T) {
	program := program(t, elf.EM_AARCH64, elf.ELFOSABI_NONE, "")
	conf := filepath.Join(t.TempDir(), "app.conf")
	noErr(t, os.WriteFile(conf, []byte("k=v"), 0o640))
	o := ScratchOptions{Name: "app:2", Entrypoint: []string{"/hello", "-v"}, Files: []ScratchFile{{conf, "/etc/app/app.conf"}}}
	s := testStore(t)
	img, err := FromBinary(t.Context(), s, program, o)
	noErr(t, err)
	copied := filepath.Join(t.TempDir(), "hello")
	raw, err := os.ReadFile(program)
	noErr(t, err)
	noErr(t, os.WriteFile(copied, raw, 0o700))
	again, err := FromBinary(t.Context(), testStore(t), copied, o)
	noErr(t, err)
	if img.ID != again.ID || img.Root != again.Root || img.Platform != "linux/arm64" || img.Name != "app:2" || strings.Join(img.Config.Entrypoint, " ") != "/hello -v" {
		t.Errorf("%+v, then %+v", img, again)
	}
	dir := filepath.Join(t.TempDir(), "root")
	noErr(t, Unpack(t.Context(), s, img.Root, dir))
	got := strings.ReplaceAll(tree(t, dir), string(raw), "PROGRAM")
	want := "-rw-r--r-- etc/app/app.conf k=v\n-rw-r--r-- etc/group " + scratchGroup + "\n-rw-r--r-- etc/passwd " + scratchPasswd +
		"\n-rwxr-xr-x hello PROGRAM\ndrwxr-xr-x etc\ndrwxr-xr-x etc/app\ndtrwxrwxrwx tmp"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	plain, err := FromBinary(t.Context(), s, program, ScratchOptions{})
	noErr(t, err)
	if plain.Name != "hello" || strings.Join(plain.Config.Entrypoint, " ") != "/hello" {
		t.Errorf("%+v", plain)
	}
}

func TestFromBinaryRefuses(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	noErr(t, os.WriteFile(text, []byte("#!/bin/sh\n"), 0o700))
	empty := filepath.Join(dir, "empty")
	noErr(t, os.WriteFile(empty, nil, 0o700))
	refused := func(program string, o ScratchOptions, want ...string) {
		t.Helper()
		_, err := FromBinary(t.Context(), testStore(t), program, o)
		wantLoadError(t, err, CodeBadRef, nil, want)
	}
	refused(text, ScratchOptions{}, text, "no ELF program", "CGO_ENABLED=0")
	refused(empty, ScratchOptions{}, empty, "no ELF program")
	refused(filepath.Join(dir, "nothing"), ScratchOptions{}, "nothing")
	static := program(t, elf.EM_X86_64, elf.ELFOSABI_LINUX, "")
	refused(static, ScratchOptions{Files: []ScratchFile{{text, "etc/x"}}}, "no absolute path", "/etc/app.conf")
	refused(static, ScratchOptions{Files: []ScratchFile{{text, "/a/../x"}}}, "no absolute path")
	refused(static, ScratchOptions{Files: []ScratchFile{{text, "/hello"}}}, "two files for /hello")
	if _, err := FromBinary(t.Context(), testStore(t), static, ScratchOptions{Files: []ScratchFile{{dir, "/d"}}}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a folder as file: %v", err)
	}
	dynamic := program(t, elf.EM_X86_64, elf.ELFOSABI_NONE, "/lib64/ld-linux-x86-64.so.2")
	refused(dynamic, ScratchOptions{}, dynamic, "linked dynamically", `"/lib64/ld-linux-x86-64.so.2" is missing`, "CGO_ENABLED=0", "lumbung image load FOLDER")
	refused(program(t, elf.EM_X86_64, elf.ELFOSABI_FREEBSD, ""), ScratchOptions{}, "not for Linux")
	refused(program(t, elf.EM_VAX, elf.ELFOSABI_NONE, ""), ScratchOptions{}, "EM_VAX")
}
