package content

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/ipfs/go-cid"
)

func ageKey(t testing.TB) *age.X25519Identity {
	t.Helper()
	k, err := age.GenerateX25519Identity()
	noErr(t, err)
	return k
}

// openInto opens a private file of one tree.
func openInto(t testing.TB, s *Store, root cid.Cid, k age.Identity, o ExportOptions) (string, error) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	_, err := OpenPrivate(t.Context(), s, root, k, map[string]string{"0": out}, o)
	return out, err
}

func TestPrivateRoundTrip(t *testing.T) {
	s, k := testStore(t), ageKey(t)
	dir := sampleTree(t)
	noErr(t, os.MkdirAll(filepath.Join(dir, "locked"), 0o755))
	noErr(t, os.WriteFile(filepath.Join(dir, "locked", "f"), []byte("f"), 0o400))
	noErr(t, os.Chmod(filepath.Join(dir, "locked"), 0o555))
	noErr(t, os.WriteFile(filepath.Join(dir, ".wh.plain"), []byte("no whiteout"), 0o644))
	noErr(t, os.WriteFile(filepath.Join(dir, strings.Repeat("näme", 50)), []byte("long"), 0o644))
	if runtime.GOOS == "linux" {
		noErr(t, os.WriteFile(filepath.Join(dir, "latin\xe9"), []byte("not UTF-8"), 0o644))
	}
	single := filepath.Join(dir, "run.sh")
	var last Progress
	trees := []Tree{{"0", dir}, {"1", single}}
	root, err := AddPrivate(t.Context(), s, trees, k.Recipient(), AddOptions{Progress: func(p Progress) { last = p }})
	noErr(t, err)
	if about := PrivateSize(t.Context(), trees); last.Phase != "done" || last.Total < last.Done || root.Bytes != last.Done || about < root.Bytes*9/10 || about > root.Bytes*11/10 {
		t.Errorf("%+v %+v, estimated %d", root, last, about)
	}
	if is, err := LooksPrivate(t.Context(), s, root.CID); !is || err != nil {
		t.Errorf("it does not look private: %v", err)
	}
	out := t.TempDir()
	dests := map[string]string{"0": filepath.Join(out, "a", "tree"), "1": filepath.Join(out, "file")}
	for range 2 { // the second goes over the first
		ex, err := OpenPrivate(t.Context(), s, root.CID, k, dests, ExportOptions{KeepOutsideLinks: true})
		noErr(t, err)
		if len(ex.Skipped) > 0 {
			t.Error(ex.Skipped)
		}
		if got, want := tree(t, dests["0"]), tree(t, dir); got != want {
			t.Errorf("got\n%.2000s\nwant\n%.2000s", got, want)
		}
	}
	noErr(t, os.RemoveAll(dests["0"]))
	_, err = OpenPrivate(t.Context(), s, root.CID, k, map[string]string{"0": "", "1": dests["1"]}, ExportOptions{})
	noErr(t, err)
	if _, err := os.Lstat(dests["0"]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is passed over was written: %v", err)
	}
	got, err := os.ReadFile(dests["1"])
	fi, serr := os.Stat(dests["1"])
	if noErr(t, serr); err != nil || string(got) != "#!/bin/sh" || fi.Mode().Perm() != 0o755 {
		t.Errorf("%q %v %v", got, fi.Mode(), err)
	}
}

// What anybody who has the blocks can see is no part of what went in.
func TestPrivateShowsNothing(t *testing.T) {
	s, k := testStore(t), ageKey(t)
	dir := filepath.Join(t.TempDir(), "d")
	noErr(t, os.MkdirAll(filepath.Join(dir, "MARKER-folder"), 0o755))
	noErr(t, os.WriteFile(filepath.Join(dir, "MARKER-folder", "MARKER-name"), bytes.Repeat([]byte("MARKER-text "), 1<<18), 0o644))
	noErr(t, os.Symlink("MARKER-target", filepath.Join(dir, "l")))
	one, err := AddPrivate(t.Context(), s, []Tree{{"0", dir}}, k.Recipient(), AddOptions{})
	noErr(t, err)
	two, err := AddPrivate(t.Context(), s, []Tree{{"0", dir}}, k.Recipient(), AddOptions{})
	noErr(t, err)
	if one.CID == two.CID {
		t.Error("the same content can be recognized")
	}
	for _, c := range []cid.Cid{one.CID, two.CID} {
		noErr(t, s.walk(t.Context(), c, func(l link, _ int, _ bool) error {
			data, err := s.get(l.ref, nil)
			if bytes.Contains(data, []byte("MARKER")) {
				t.Errorf("block %s shows plaintext", l.ref)
			}
			return err
		}))
	}
}

func TestPrivateWrongKey(t *testing.T) {
	s := testStore(t)
	root, err := AddPrivate(t.Context(), s, []Tree{{"0", sampleTree(t)}}, ageKey(t).Recipient(), AddOptions{})
	noErr(t, err)
	out, err := openInto(t, s, root.CID, ageKey(t), ExportOptions{})
	if !errors.Is(err, ErrSealed) || !strings.Contains(err.Error(), "another key") {
		t.Errorf("%v", err)
	}
	if _, err := os.Lstat(out); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was written: %v", err)
	}
}

// ciphertext is a private file's bytes.
func ciphertext(t testing.TB, s *Store, root cid.Cid) []byte {
	t.Helper()
	var b bytes.Buffer
	noErr(t, Cat(t.Context(), s, root, "", &b))
	return b.Bytes()
}

func putFile(t testing.TB, s *Store, data []byte) cid.Cid {
	t.Helper()
	root, err := AddReader(t.Context(), s, bytes.NewReader(data), AddOptions{})
	noErr(t, err)
	return root.CID
}

// A file that is cut or changed anywhere does not open, and no byte of the
// damaged part is left on the disk.
func TestPrivateDamaged(t *testing.T) {
	s, k := testStore(t), ageKey(t)
	dir := filepath.Join(t.TempDir(), "d")
	noErr(t, os.MkdirAll(dir, 0o755))
	want := map[string][]byte{}
	for i := range 8 {
		name := fmt.Sprintf("f%d", i)
		want[name] = noise(uint64(i), 50_000)
		noErr(t, os.WriteFile(filepath.Join(dir, name), want[name], 0o644))
	}
	root, err := AddPrivate(t.Context(), s, []Tree{{"0", dir}}, k.Recipient(), AddOptions{})
	noErr(t, err)
	good := ciphertext(t, s, root.CID)
	flipped := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	const chunk = 64<<10 + 16
	body := len(good) % chunk // a little more than the header
	swapped := bytes.Clone(good)
	copy(swapped[body:], good[body+chunk:body+2*chunk])
	copy(swapped[body+chunk:], good[body:body+chunk])
	cases := map[string][]byte{
		"empty": {}, "no age file": []byte("hello"), "magic alone": []byte(ageMagic), "half a header": good[:60],
		"without its last byte": good[:len(good)-1], "without its last chunk": good[:len(good)-(len(good)%chunk)],
		"half": good[:len(good)/2], "with a byte more": append(bytes.Clone(good), 0), "chunks swapped": swapped,
		"header changed": flipped(30), "first chunk changed": flipped(1000), "middle changed": flipped(len(good) / 2), "end changed": flipped(len(good) - 1),
	}
	for name, data := range cases {
		t.Run(name, func(t *testing.T) {
			out, err := openInto(t, s, putFile(t, s, data), k, ExportOptions{})
			if !errors.Is(err, ErrSealed) {
				t.Errorf("%v", err)
			}
			entries, err := os.ReadDir(out)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			for _, e := range entries {
				got, err := os.ReadFile(filepath.Join(out, e.Name()))
				if noErr(t, err); !bytes.Equal(got, want[e.Name()]) {
					t.Errorf("%s is there and not right", e.Name())
				}
			}
		})
	}
}

// sealTar makes a private file of a tar that no honest node makes.
func sealTar(t testing.TB, s *Store, to age.Recipient, write func(*tar.Writer)) cid.Cid {
	t.Helper()
	var b bytes.Buffer
	enc, err := age.Encrypt(&b, to)
	noErr(t, err)
	tw := tar.NewWriter(enc)
	write(tw)
	_ = tw.Flush()
	_, err = enc.Write(make([]byte, 1024))
	noErr(t, errors.Join(err, enc.Close()))
	return putFile(t, s, b.Bytes())
}

type evilEntry struct {
	h    tar.Header
	body string
}

func dirEntry(name string) evilEntry {
	return evilEntry{h: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}}
}

func fileEntry(name string) evilEntry {
	return evilEntry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: 4}, "evil"}
}

func linkEntry(name, to string) evilEntry {
	return evilEntry{h: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}}
}

func TestPrivateHostile(t *testing.T) {
	s, k := testStore(t), ageKey(t)
	deep := []evilEntry{dirEntry("0/")}
	for i := range maxAddDepth + 3 {
		deep = append(deep, dirEntry("0/"+strings.Repeat("d/", i+1)))
	}
	victim := t.TempDir()
	for name, c := range map[string]struct {
		entries []evilEntry
		limits  Limits
		want    error
	}{
		"climbs":                    {[]evilEntry{dirEntry("0/"), fileEntry("0/../../evil")}, Limits{}, ErrUnsafe},
		"climbs at once":            {[]evilEntry{fileEntry("../evil")}, Limits{}, ErrUnsafe},
		"absolute":                  {[]evilEntry{fileEntry("/evil")}, Limits{}, ErrUnsafe},
		"through its own link":      {[]evilEntry{dirEntry("0/"), linkEntry("0/l", "../.."), fileEntry("0/l/evil")}, Limits{}, ErrMalformed},
		"a folder over its link":    {[]evilEntry{dirEntry("0/"), linkEntry("0/l", victim), dirEntry("0/l/"), fileEntry("0/l/evil")}, Limits{}, os.ErrExist},
		"a tree that is a link":     {[]evilEntry{linkEntry("0", victim), fileEntry("0/evil")}, Limits{}, ErrMalformed},
		"not asked for":             {[]evilEntry{dirEntry("0/"), dirEntry("1/"), fileEntry("1/evil")}, Limits{}, ErrMalformed},
		"twice":                     {[]evilEntry{dirEntry("0/"), dirEntry("0/")}, Limits{}, ErrMalformed},
		"nothing":                   {nil, Limits{}, ErrMalformed},
		"a file before its folder":  {[]evilEntry{dirEntry("0/"), fileEntry("0/a/evil")}, Limits{}, ErrMalformed},
		"a device":                  {[]evilEntry{dirEntry("0/"), {h: tar.Header{Typeflag: tar.TypeChar, Name: "0/null", Devmajor: 1, Devminor: 3}}}, Limits{}, ErrMalformed},
		"a hard link":               {[]evilEntry{dirEntry("0/"), {h: tar.Header{Typeflag: tar.TypeLink, Name: "0/evil", Linkname: "/etc/passwd"}}}, Limits{}, ErrMalformed},
		"a pipe":                    {[]evilEntry{dirEntry("0/"), {h: tar.Header{Typeflag: tar.TypeFifo, Name: "0/evil"}}}, Limits{}, ErrMalformed},
		"too many":                  {[]evilEntry{dirEntry("0/"), fileEntry("0/a"), fileEntry("0/b"), fileEntry("0/evil")}, Limits{Entries: 3}, ErrTooLarge},
		"too much":                  {[]evilEntry{dirEntry("0/"), fileEntry("0/a"), fileEntry("0/evil")}, Limits{Bytes: 7}, ErrTooLarge},
		"too deep":                  {deep, Limits{}, ErrTooLarge},
		"an empty link":             {[]evilEntry{dirEntry("0/"), linkEntry("0/l", strings.Repeat("x", maxPathLen+1))}, Limits{}, ErrUnsafe},
		"a colon of another system": {[]evilEntry{dirEntry("0/"), fileEntry(`0/a\evil`)}, Limits{}, ErrUnsafe},
	} {
		t.Run(name, func(t *testing.T) {
			root := sealTar(t, s, k.Recipient(), func(tw *tar.Writer) {
				for _, e := range c.entries {
					noErr(t, tw.WriteHeader(&e.h))
					_, err := io.WriteString(tw, e.body)
					noErr(t, err)
				}
			})
			out, err := openInto(t, s, root, k, ExportOptions{Limits: c.limits, KeepOutsideLinks: true})
			if !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			for _, p := range []string{filepath.Join(filepath.Dir(out), "evil"), filepath.Join(out, "evil"), filepath.Join(victim, "evil")} {
				if _, err := os.Lstat(p); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is there", p)
				}
			}
		})
	}
}

// A tar with holes says how large a file is and does not hold it.
func TestPrivateRefusesHoles(t *testing.T) {
	s, k := testStore(t), ageKey(t)
	record := func(kind byte, name string, body string) string {
		h := make([]byte, 512)
		copy(h, name)
		copy(h[100:], "0000644\x000000000\x000000000\x00")
		copy(h[124:], fmt.Sprintf("%011o\x0000000000000\x00        ", len(body)))
		h[156] = kind
		copy(h[257:], "ustar\x0000")
		sum := 0
		for _, b := range h {
			sum += int(b)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
		return string(h) + body + strings.Repeat("\x00", (512-len(body)%512)%512)
	}
	var pax strings.Builder
	for _, kv := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=0/hole", fmt.Sprintf("GNU.sparse.realsize=%d", 1<<40)} {
		fmt.Fprintf(&pax, "%02d %s\n", len(kv)+4, kv)
	}
	raw := record('5', "0/", "") + record('x', "pax", pax.String()) + record('0', "0/hole", "0\n"+strings.Repeat("\x00", 510)) + strings.Repeat("\x00", 1024)
	tr := tar.NewReader(strings.NewReader(raw))
	_, err := tr.Next()
	noErr(t, err)
	if h, err := tr.Next(); err != nil || h.Size != 1<<40 {
		t.Fatalf("the test's tar has no hole: %+v %v", h, err)
	}
	var b bytes.Buffer
	enc, err := age.Encrypt(&b, k.Recipient())
	noErr(t, err)
	_, err = io.WriteString(enc, raw)
	noErr(t, errors.Join(err, enc.Close()))
	_, err = openInto(t, s, putFile(t, s, b.Bytes()), k, ExportOptions{Limits: Limits{Bytes: 1 << 62}})
	if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "holes") {
		t.Errorf("%v", err)
	}
}

// A block that is not here is the store's trouble and blames nobody.
func TestPrivateMissingBlock(t *testing.T) {
	s, k := testStore(t), ageKey(t)
	dir := t.TempDir()
	noErr(t, os.WriteFile(filepath.Join(dir, "f"), noise(1, 5<<20), 0o644))
	root, err := AddPrivate(t.Context(), s, []Tree{{"0", dir}}, k.Recipient(), AddOptions{})
	noErr(t, err)
	for _, missing := range []int{0, 1, 3} {
		part := testStore(t)
		n := 0
		noErr(t, s.walk(t.Context(), root.CID, func(l link, _ int, _ bool) error {
			if n++; n-1 == missing {
				return nil
			}
			data, err := s.get(l.ref, nil)
			if err != nil {
				return err
			}
			return part.Put(t.Context(), l.ref.cid(), data)
		}))
		if _, err := openInto(t, part, root.CID, k, ExportOptions{}); !errors.Is(err, ErrNotFound) || errors.Is(err, ErrSealed) {
			t.Errorf("block %d: %v", missing, err)
		}
	}
}

func TestPrivateEnds(t *testing.T) {
	s, k := testStore(t), ageKey(t)
	dir := t.TempDir()
	noErr(t, os.WriteFile(filepath.Join(dir, "f"), noise(1, 5<<20), 0o644))
	root, err := AddPrivate(t.Context(), s, []Tree{{"0", dir}}, k.Recipient(), AddOptions{})
	noErr(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	_, err = OpenPrivate(ctx, s, root.CID, k, map[string]string{"0": filepath.Join(t.TempDir(), "out")}, ExportOptions{Progress: func(Progress) { cancel() }})
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrSealed) {
		t.Errorf("open: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	_, err = AddPrivate(ctx, s, []Tree{{"0", dir}}, k.Recipient(), AddOptions{Progress: func(Progress) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("add: %v", err)
	}
	if _, err := AddPrivate(t.Context(), s, []Tree{{"0", filepath.Join(dir, "none")}}, k.Recipient(), AddOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("add nothing: %v", err)
	}
}

// A live folder may hold what is neither file, folder nor link.
func TestPrivateSpecials(t *testing.T) {
	s, k := testStore(t), ageKey(t)
	dir := t.TempDir()
	noErr(t, os.WriteFile(filepath.Join(dir, "f"), []byte("f"), 0o644))
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(dir, "socket"))
	noErr(t, err)
	defer func() { _ = l.Close() }()
	if _, err := AddPrivate(t.Context(), s, []Tree{{"0", dir}}, k.Recipient(), AddOptions{}); !errors.Is(err, ErrUnsafe) {
		t.Errorf("%v", err)
	}
	root, err := AddPrivate(t.Context(), s, []Tree{{"0", dir}}, k.Recipient(), AddOptions{Live: true})
	noErr(t, err)
	out, err := openInto(t, s, root.CID, k, ExportOptions{})
	noErr(t, err)
	if got := tree(t, out); got != "-rw-r--r-- f f" {
		t.Error(got)
	}
}

func TestLooksPrivate(t *testing.T) {
	s := testStore(t)
	dir, err := Add(t.Context(), s, sampleTree(t), AddOptions{})
	noErr(t, err)
	for name, c := range map[string]cid.Cid{
		"a folder": dir.CID, "text": putFile(t, s, []byte("plain text that is long enough")), "short": putFile(t, s, []byte("age")),
		"nothing": putFile(t, s, nil),
	} {
		if is, err := LooksPrivate(t.Context(), s, c); is || err != nil {
			t.Errorf("%s looks private, or %v", name, err)
		}
	}
	if is, err := LooksPrivate(t.Context(), s, rawRef([]byte("not here")).cid()); is || !errors.Is(err, ErrNotFound) {
		t.Errorf("what is not here: %v %v", is, err)
	}
}

// Whatever a private file holds, opening it writes nothing outside and ends.
func FuzzOpenPrivate(f *testing.F) {
	k := ageKey(f)
	seed := func(entries ...evilEntry) []byte {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		for _, e := range entries {
			noErr(f, tw.WriteHeader(&e.h))
			_, err := io.WriteString(tw, e.body)
			noErr(f, err)
		}
		noErr(f, tw.Close())
		return b.Bytes()
	}
	f.Add(seed(dirEntry("0/"), fileEntry("0/a"), linkEntry("0/l", "a"), dirEntry("0/d/"), fileEntry("0/d/b")), uint32(0))
	f.Add(seed(fileEntry("0")), uint32(0))
	f.Add(seed(dirEntry("0/"), linkEntry("0/l", "../.."), fileEntry("0/l/evil")), uint32(0))
	f.Add(seed(dirEntry("0/"), fileEntry("0/../evil")), uint32(0))
	f.Add(seed(dirEntry("0/"), fileEntry("0/a")), uint32(300))
	f.Fuzz(func(t *testing.T, plain []byte, flip uint32) {
		var b bytes.Buffer
		enc, err := age.Encrypt(&b, k.Recipient())
		noErr(t, err)
		_, err = enc.Write(plain)
		noErr(t, errors.Join(err, enc.Close()))
		sealed := b.Bytes()
		if flip > 0 {
			sealed[int(flip)%len(sealed)] ^= 1
		}
		dir := t.TempDir()
		o := ExportOptions{Limits: Limits{Bytes: 1 << 20, Entries: 100}, KeepOutsideLinks: true}
		u := newUnsealer(exporter{ctx: t.Context(), o: o}, map[string]string{"0": filepath.Join(dir, "in", "out")})
		err = u.run(bytes.NewReader(sealed), k)
		if len(u.open) > 0 {
			t.Error("folders are left open")
		}
		if flip > 0 && err == nil && int(flip)%len(sealed) >= len(ageMagic) {
			t.Error("a changed file opened")
		}
		for at, only := range map[string]string{dir: "in", filepath.Join(dir, "in"): "out"} {
			entries, rerr := os.ReadDir(at)
			if rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
				t.Fatal(rerr)
			}
			for _, e := range entries {
				if e.Name() != only {
					t.Errorf("%s/%s was written (%v)", at, e.Name(), err)
				}
			}
		}
	})
}

// Encryption beside plain adding, and opening beside exporting, in one run.
func BenchmarkPrivate(b *testing.B) {
	shapes := map[string]func(dir string){
		"one": func(dir string) { noErr(b, os.WriteFile(filepath.Join(dir, "f"), noise(1, 256<<20), 0o644)) },
		"many": func(dir string) {
			for i := range 5000 {
				noErr(b, os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", i)), noise(uint64(i), 4096), 0o644))
			}
		},
	}
	for _, shape := range []string{"one", "many"} {
		dir := b.TempDir()
		shapes[shape](dir)
		k := ageKey(b)
		add := map[string]func(s *Store) (Root, error){
			"plain": func(s *Store) (Root, error) { return Add(b.Context(), s, dir, AddOptions{}) },
			"private": func(s *Store) (Root, error) {
				return AddPrivate(b.Context(), s, []Tree{{"0", dir}}, k.Recipient(), AddOptions{})
			},
		}
		take := map[string]func(s *Store, root cid.Cid, out string) error{
			"plain": func(s *Store, root cid.Cid, out string) error { return Export(b.Context(), s, root, out) },
			"private": func(s *Store, root cid.Cid, out string) error {
				_, err := OpenPrivate(b.Context(), s, root, k, map[string]string{"0": out}, ExportOptions{})
				return err
			},
		}
		for _, how := range []string{"plain", "private"} {
			b.Run("add/"+shape+"/"+how, func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					s := testStore(b)
					b.StartTimer()
					root, err := add[how](s)
					noErr(b, err)
					b.SetBytes(int64(root.Bytes))
				}
			})
			b.Run("open/"+shape+"/"+how, func(b *testing.B) {
				s := testStore(b)
				root, err := add[how](s)
				noErr(b, err)
				for b.Loop() {
					noErr(b, take[how](s, root.CID, filepath.Join(b.TempDir(), "out")))
				}
				b.SetBytes(int64(root.Bytes))
			})
		}
	}
}
