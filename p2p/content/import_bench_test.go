package content

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
)

// benchEnv makes the benchmarks smaller: LUMBUNG_BENCH_MIB=64 is a sixteenth.
const benchEnv = "LUMBUNG_BENCH_MIB"

// BenchBytes is the GiB that the large benchmarks move, or a part of it.
func BenchBytes(tb testing.TB, part int64) int64 {
	tb.Helper()
	mib := int64(1024)
	if v := os.Getenv(benchEnv); v != "" {
		n, err := strconv.ParseInt(v, 10, 32)
		noErr(tb, err)
		mib = n
	}
	return max(8, mib/part) << 20
}

// realBytes makes bytes that pack about as programs and texts do: words of a
// vocabulary, often the same ones, with noise between.
type realBytes struct {
	r     *rand.Rand
	zipf  *rand.Zipf
	words [][]byte
	left  []byte
}

func newRealBytes(seed uint64) *realBytes {
	r := rand.New(rand.NewPCG(seed, 7)) //nolint:gosec // a benchmark
	b := &realBytes{r: r, zipf: rand.NewZipf(r, 1.15, 4, 1<<13-1)}
	for range 1 << 13 {
		w := make([]byte, 3+r.IntN(14))
		for i := range w {
			w[i] = byte(r.Uint32())
		}
		b.words = append(b.words, w)
	}
	return b
}

func (b *realBytes) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if len(b.left) == 0 {
			b.left = b.words[b.zipf.Uint64()]
		}
		m := copy(p[n:], b.left)
		b.left = b.left[m:]
		n += m
	}
	return n, nil
}

// packageFiles writes the files of one package of a version.
func packageFiles(tb testing.TB, tw *tar.Writer, name string, version, size uint64) {
	tb.Helper()
	src := newRealBytes(uint64(len(name))<<40 ^ uint64(name[len(name)-1])<<20 ^ version)
	sizes := rand.New(rand.NewPCG(7, version)) //nolint:gosec // a benchmark
	for i := uint64(0); size > 0; i++ {
		n := min(size, 200+uint64(sizes.ExpFloat64()*40_000))
		if i%97 == 0 {
			n = min(size, 4<<20) // the libraries and programs
		}
		size -= n
		noErr(tb, tw.WriteHeader(&tar.Header{
			Name: fmt.Sprintf("opt/%s/f%05d", name, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(n), ModTime: testTime.Add(time.Duration(version) * time.Hour),
		}))
		_, err := io.CopyN(tw, src, int64(n))
		noErr(tb, err)
	}
}

// benchLayer is a layer of seven packages, of which the third has a version.
func benchLayer(tb testing.TB, mib, version uint64) []byte {
	tb.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for i := range uint64(7) {
		v := uint64(1)
		if i == 2 {
			v = version
		}
		packageFiles(tb, tw, fmt.Sprintf("package-%d", i), v, mib<<20/7)
	}
	noErr(tb, tw.Close())
	return buf.Bytes()
}

func packGz(tb testing.TB, data []byte) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, gzip.DefaultCompression)
	noErr(tb, err)
	_, err = w.Write(data)
	noErr(tb, err)
	noErr(tb, w.Close())
	return buf.Bytes()
}

// timed runs a program, and says how long it took, and how much processor time.
func timed(b *testing.B, name string, args ...string) (wall, cpu time.Duration) {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return time.Since(began), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}

// BenchmarkImport imports an image of one layer beside `tar -x` and `sha256sum`
// of the same bytes, which are the least that anybody needs for it. Ours also
// is durable at the end. x-floor is ours by the sum of theirs.
func BenchmarkImport(b *testing.B) {
	for _, tool := range []string{"tar", "sha256sum", "gzip"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.Skip(err)
		}
	}
	layer := benchLayer(b, uint64(BenchBytes(b, 3)>>20), 1)
	config := testConfig(b, "amd64", layer)
	dir := b.TempDir()
	plain := filepath.Join(dir, "layer.tar")
	noErr(b, os.WriteFile(plain, layer, 0o600))
	packed := packGz(b, layer)
	noErr(b, os.WriteFile(plain+".gz", packed, 0o600))
	b.Logf("layer of %d MiB, packed to %d MiB", len(layer)>>20, len(packed)>>20)
	for _, kind := range []struct {
		name, file, flag string
		blob             []byte
	}{{"plain", plain, "-xf", layer}, {"gzip", plain + ".gz", "-xzf", packed}} {
		layout := ociLayout(b, false, ociImage{"amd64", config, [][]byte{kind.blob}})
		b.Run(kind.name, func(b *testing.B) {
			b.SetBytes(int64(len(layer)))
			var ours, tarTime, sum, ourCPU, tarCPU, sumCPU time.Duration
			for b.Loop() {
				b.StopTimer()
				out := filepath.Join(dir, "out")
				noErr(b, os.Mkdir(out, 0o755))
				took, cpu := timed(b, "tar", kind.flag, kind.file, "-C", out)
				tarTime, tarCPU = tarTime+took, tarCPU+cpu
				noErr(b, os.RemoveAll(out))
				took, cpu = timed(b, "sha256sum", plain)
				sum, sumCPU = sum+took, sumCPU+cpu
				noErr(b, os.Mkdir(out, 0o755))
				s, err := Open(out, Options{})
				noErr(b, err)
				b.StartTimer()
				began, used := time.Now(), processCPU()
				_, err = LoadImage(b.Context(), s, layout, LoadOptions{})
				ours += time.Since(began)
				ourCPU += processCPU() - used
				b.StopTimer()
				noErr(b, err)
				noErr(b, s.Close())
				noErr(b, os.RemoveAll(out))
				b.StartTimer()
			}
			n := float64(b.N)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ours.Seconds()/n, "ours-s")
			b.ReportMetric(ourCPU.Seconds()/n, "ours-cpu-s")
			b.ReportMetric(tarTime.Seconds()/n, "tar-s")
			b.ReportMetric(tarCPU.Seconds()/n, "tar-cpu-s")
			b.ReportMetric(sum.Seconds()/n, "sha256sum-s")
			b.ReportMetric(sumCPU.Seconds()/n, "sha256sum-cpu-s")
			b.ReportMetric(ours.Seconds()/(tarTime+sum).Seconds(), "x-floor(<=1.5)")
		})
	}
}

// BenchImage imports an image of seven packages, the third of a version, and
// says how many bytes its gzip layer has.
func BenchImage(tb testing.TB, s *Store, mib, version uint64) (root cid.Cid, packed int) {
	tb.Helper()
	layer := benchLayer(tb, mib, version)
	gz := packGz(tb, layer)
	layout := ociLayout(tb, false, ociImage{"amd64", testConfig(tb, "amd64", layer), [][]byte{gz}})
	im, err := LoadImage(tb.Context(), s, layout, LoadOptions{})
	noErr(tb, err)
	return im.Root, len(gz)
}
