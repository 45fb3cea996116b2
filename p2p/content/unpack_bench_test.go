package content

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// benchTree describes the tar of one benchmark.
type benchTree struct {
	name  string
	files int
	size  int64
}

// write makes the tar.
func (bt benchTree) write(b *testing.B, dir string) (layer string) {
	b.Helper()
	layer = filepath.Join(dir, bt.name+".tar")
	f, err := os.Create(layer)
	noErr(b, err)
	tw := tar.NewWriter(f)
	header := func(h tar.Header) {
		h.ModTime = testTime
		noErr(b, tw.WriteHeader(&h))
	}
	const perFolder = 100
	for i := range bt.files {
		folder := fmt.Sprintf("usr/share/d%03d/", i/perFolder)
		if i%perFolder == 0 {
			header(tar.Header{Name: folder, Typeflag: tar.TypeDir, Mode: 0o755})
		}
		header(tar.Header{Name: fmt.Sprintf("%sfile-%05d", folder, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: bt.size})
		_, err := io.Copy(tw, noiseReader(uint64(i), bt.size))
		noErr(b, err)
	}
	noErr(b, tw.Close())
	noErr(b, f.Close())
	return layer
}

// layerImage puts a tar as an image of one layer, in chunks of equal size.
func layerImage(t testing.TB, s *Store, r io.Reader) cid.Cid {
	t.Helper()
	l := rawLayer(t, s, r)
	_, root, err := finishImage(s, diffConfig(t, digestOf(l.diff)), []layerRef{l})
	noErr(t, err)
	noErr(t, s.Sync())
	return root.cid()
}

// diffConfig is an image config with layers of the given diff ids.
func diffConfig(t testing.TB, diffs ...digest.Digest) []byte {
	t.Helper()
	var c ocispec.Image
	c.OS, c.Architecture = "linux", "amd64"
	c.RootFS.Type, c.RootFS.DiffIDs = "layers", diffs
	b, err := json.Marshal(c)
	noErr(t, err)
	return b
}

// rawLayer puts what r yields as the tar of a layer.
func rawLayer(t testing.TB, s *Store, r io.Reader) layerRef {
	t.Helper()
	var list []sized
	var total uint64
	diff := sha256.New()
	buf := make([]byte, 256<<10)
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			_, _ = diff.Write(buf[:n])
			ref := rawRef(buf[:n])
			noErr(t, s.put(ref.key, buf[:n]))
			list = append(list, sized{ref, uint64(n)})
			total += uint64(n)
		}
		if err != nil {
			break
		}
	}
	l, err := putMap(s, list, key(diff.Sum(nil)), total)
	noErr(t, err)
	return l
}

// BenchmarkUnpack lays out one tree, of 20,000 files of 4 KiB or of 8 files of
// 128 MiB, by Unpack and by GNU tar, turn and turn
// about, so that the ratio of the two is worth something on a noisy machine.
// TMPDIR says on which file system.
func BenchmarkUnpack(b *testing.B) {
	if _, err := exec.LookPath("tar"); err != nil {
		b.Skip(err)
	}
	for _, bt := range []benchTree{{"small", int(BenchBytes(b, 1) >> 20 * 20_000 / 1024), 4 << 10}, {"large", 8, BenchBytes(b, 8)}} {
		b.Run(bt.name, func(b *testing.B) {
			dir := b.TempDir()
			layer := bt.write(b, dir)
			s := testStore(b)
			f, err := os.Open(layer)
			noErr(b, err)
			root := layerImage(b, s, f)
			noErr(b, f.Close())
			to := filepath.Join(dir, "to")
			var ours, tarTime, ourCPU, tarCPU time.Duration
			for b.Loop() {
				began, used := time.Now(), processCPU()
				noErr(b, Unpack(b.Context(), s, root, to))
				ours += time.Since(began)
				ourCPU += processCPU() - used
				noErr(b, RemoveAll(to))
				noErr(b, os.Mkdir(to, 0o755))
				took, cpu := timed(b, "tar", "-x", "-f", layer, "-C", to)
				tarTime += took
				tarCPU += cpu
				noErr(b, RemoveAll(to))
			}
			n := float64(b.N)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ours.Seconds()/n, "ours-s")
			b.ReportMetric(ourCPU.Seconds()/n, "ours-cpu-s")
			b.ReportMetric(tarTime.Seconds()/n, "tar-s")
			b.ReportMetric(tarCPU.Seconds()/n, "tar-cpu-s")
			b.ReportMetric(ours.Seconds()/tarTime.Seconds(), "x-tar")
		})
	}
}
