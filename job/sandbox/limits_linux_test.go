package sandbox

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func wantExceeded(t *testing.T, x Exit, limit string, code int, killed bool) {
	t.Helper()
	if x.Code != code || x.Exceeded == nil || x.Exceeded.Limit != limit || x.Exceeded.Killed != killed || x.Source != SourceJob {
		t.Fatalf("exit %+v, exceeded %+v; want %s, code %d", x, x.Exceeded, limit, code)
	}
	if killed != strings.Contains(x.Reason, limit+" limit") {
		t.Errorf("reason %q", x.Reason)
	}
	if x.Exceeded.Max == 0 || x.Exceeded.Seen < x.Exceeded.Max/10*9 || x.Exceeded.At.Before(x.Started) || x.Exceeded.At.After(x.Ended) {
		t.Errorf("figures %+v", x.Exceeded)
	}
	t.Log(x.Exceeded)
}

func TestTimeLimit(t *testing.T) {
	e := newEnv(t)
	s := e.spec("deaf")
	s.RunLimit = 500 * time.Millisecond
	x, _ := e.run(s)
	wantExceeded(t, x, LimitTime, CodeTimeout, true)
	if ran := x.Ended.Sub(x.Started); ran < s.RunLimit || ran > s.RunLimit+3*time.Second {
		t.Errorf("it ran %s", ran)
	}
}

func TestMemoryLimit(t *testing.T) {
	e := newEnv(t)
	s := e.spec("hold", "100", "700ms")
	if x, out := e.run(s); x.Code != 0 || out != "held 100\n" || x.Usage.MemoryPeak < 100<<20 {
		t.Fatalf("within the limit: %+v %s", x, out)
	}
	greedy := e.spec("eat")
	x, _ := e.run(greedy)
	wantExceeded(t, x, LimitMemory, 137, true)
	recs := e.records(greedy.ID)
	if last := recs[len(recs)-1]; last.Stream != Notice || string(last.Data) != x.Exceeded.String()+"\n" || x.Reason != x.Exceeded.String() {
		t.Errorf("last record %q, reason %q", last.Data, x.Reason)
	}
	if !x.OOM || x.Exceeded.Seen > 3*s.MemoryBytes {
		t.Errorf("%+v", x)
	}
}

func TestMemoryHeldByTmpfs(t *testing.T) {
	e := newEnv(t)
	for _, dir := range []string{"/tmp", "/dev/shm"} {
		x, out := e.run(e.spec("fill", dir+"/x"))
		if x.Code != 5 || !strings.Contains(out, "filled 12") || !strings.Contains(out, "no space left") {
			t.Errorf("%s: %+v %s", dir, x, out)
		}
	}
	s := e.spec("tiny", "/tmp")
	s.MemoryBytes = 32 << 20
	x, _ := e.run(s)
	wantExceeded(t, x, LimitMemory, 137, true)
}

func TestPidsLimit(t *testing.T) {
	e := newEnv(t)
	s := e.spec("bomb")
	s.MemoryBytes = 2 << 30
	x, _ := e.run(s)
	wantExceeded(t, x, LimitPids, 137, true)
	if x.Exceeded.Seen > 4096 {
		t.Errorf("%d processes", x.Exceeded.Seen)
	}
}

func TestDiskLimit(t *testing.T) {
	e := newEnv(t)
	x, out := e.run(e.spec("fill", "/big"))
	wantExceeded(t, x, LimitDisk, 5, false)
	if !strings.Contains(out, "filled 6") || !strings.Contains(out, "no space left on device") {
		t.Errorf("output %q", out)
	}
	s := e.spec("fill", "/big", ";", "echo")
	s.OutputBytes = 1 << 20
	s.DiskBytes = 4 << 20
	if _, out := e.run(s); !strings.Contains(out, "filled 3") && !strings.Contains(out, "filled 4") {
		t.Errorf("output %q", out)
	}
}

func TestOutputLimit(t *testing.T) {
	e := newEnv(t)
	for _, op := range []string{"fill", "tiny"} {
		out := filepath.Join(e.base, "out-"+op)
		must(t, os.Mkdir(out, 0o755))
		s := e.spec(op, "/out/x")
		if op == "tiny" {
			s = e.spec("tiny", "/out")
		}
		s.OutputBytes, s.DiskBytes = 4<<20, 4<<30 // one file may be large
		s.Mounts = []Mount{{Source: out, Dest: "/out"}}
		x, _ := e.run(s)
		wantExceeded(t, x, LimitOutput, 137, true)
		if x.Exceeded.Seen > 1<<30 {
			t.Errorf("%s: %d bytes", op, x.Exceeded.Seen)
		}
		must(t, RemoveTree(out))
	}
}

// TestTreeSize measures folders in folders, and stops when it is over.
func TestTreeSize(t *testing.T) {
	base := t.TempDir()
	at, files := base, 0
	for range 20 {
		at = filepath.Join(at, "d")
		must(t, os.Mkdir(at, 0o755))
		for i := range listed/10 + 1 {
			must(t, os.WriteFile(filepath.Join(at, strconv.Itoa(i)), []byte("x"), 0o644))
			files++
		}
	}
	must(t, unix.Mkfifo(filepath.Join(base, "pipe"), 0o644)) // nobody may wait for its other end
	must(t, os.Symlink("/", filepath.Join(base, "link")))
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(at, "0"), &st))
	want := uint64(files)*max(1, uint64(st.Blocks)*512) + uint64(files+20+2)*entryCost
	s := Spec{Mounts: []Mount{{Source: base, Dest: "/out"}}}
	if n := outputSize(s, 1<<40); n != want {
		t.Errorf("%d bytes, want %d", n, want)
	}
	if n := outputSize(s, 10*entryCost); n <= 10*entryCost || n > (listed+30)*2*entryCost {
		t.Errorf("%d bytes for a limit of %d", n, 10*entryCost)
	}
}

// TestLookAgain: looks that take long, for a job has made many files, come soon
// enough to see a large one.
func TestLookAgain(t *testing.T) {
	s := &shim{}
	if wait := s.lookAgain(1, 1<<40, 10*time.Millisecond); wait != 200*time.Millisecond {
		t.Errorf("a short look is repeated after %s", wait)
	}
	if wait := s.lookAgain(1, 1<<40, time.Minute); wait != blindLook {
		t.Errorf("a long look is repeated after %s", wait)
	}
}

func TestOpenFiles(t *testing.T) {
	e := newEnv(t)
	s := e.spec("files")
	s.OpenFiles = 32
	if x, out := e.run(s); x.Code != 0 || !strings.Contains(out, "too many open files") || !strings.HasPrefix(out, "opened 2") ||
		!strings.Contains(out, "raise: operation not permitted") || !strings.Contains(out, "beyond: bad file descriptor") {
		t.Errorf("%+v %s", x, out)
	}
}

func TestLogFlood(t *testing.T) {
	e := newEnv(t)
	s := e.spec("flood", "1024", ";", "exit", "6")
	begin := time.Now()
	x, _ := e.run(s)
	t.Logf("1 GiB of output in %s", time.Since(begin))
	wantExceeded(t, x, LimitLog, 6, false)
	if x.LogDropped == 0 || x.Exceeded.Seen != s.MaxLogBytes+x.LogDropped {
		t.Fatalf("%+v", x)
	}
	recs := e.records(s.ID)
	var kept, total uint64
	for i, r := range recs {
		if r.Seq != uint64(i+1) {
			t.Fatalf("record %d has number %d", i, r.Seq)
		}
		total += frameHeader + uint64(len(r.Data))
		if r.Stream == Stdout {
			kept += uint64(len(r.Data))
		}
	}
	if kept+x.LogDropped != 1<<30 || total > s.MaxLogBytes+1024 {
		t.Errorf("kept %d dropped %d total %d", kept, x.LogDropped, total)
	}
	last := recs[len(recs)-1]
	if last.Stream != Notice || !strings.Contains(string(last.Data), "dropped") {
		t.Errorf("last record %q", last.Data)
	}
	info, err := os.Stat(filepath.Join(e.r.jobs, s.ID, fileLog))
	must(t, err)
	if info.Size() > int64(s.MaxLogBytes)+1024 {
		t.Errorf("the log file has %d bytes", info.Size())
	}
}

// TestCPULimit has one thread, more threads than there are CPUs, threads in long
// system calls and a crowd of processes that end at once try to use more than
// half a CPU. What they used is what the kernel says of the ended processes, less
// what it says of a job that does nothing: to start a sandbox takes CPU time too.
func TestCPULimit(t *testing.T) {
	e := newEnv(t)
	use := func(steps ...string) (used time.Duration, x Exit) {
		s := e.spec(steps...)
		s.CPUMillis = 500
		before := childCPU()
		h := e.start(s)
		if x = e.wait(s.ID); x.Code != 0 {
			t.Fatalf("%v: %+v", steps, x)
		}
		gone(t, h.Shim)
		must(t, e.r.Remove(ctxOf(t), s.ID)) // collects the supervisor
		return childCPU() - before, x
	}
	var start time.Duration // the dearest so far: what else runs on the machine shows in it
	for _, steps := range [][]string{{"crunch", "1", "1500ms"}, {"crunch", "4", "1500ms"}, {"syscalls", "3", "1500ms"}, {"spinners", "3", "1500ms"}} {
		idle, _ := use("echo")
		start = max(start, idle)
		used, x := use(steps...)
		ran := x.Ended.Sub(x.Started)
		t.Logf("%v: %s of CPU in %s, and %s to start", steps, used-start, ran, start)
		most := ran/2 + ran/10 + 150*time.Millisecond
		if used-start > most {
			t.Errorf("%v: used %s of CPU in %s with half a CPU", steps, used-start, ran)
		}
		if x.Usage.CPU-start > most {
			t.Errorf("%v: %s are said to be used", steps, x.Usage.CPU)
		}
	}
}

// TestStopWhileHeldBack has a job that is far over its share of CPU hear a
// polite stop.
func TestStopWhileHeldBack(t *testing.T) {
	e := newEnv(t)
	s := e.spec("background", "3", ";", "trap")
	s.CPUMillis = 100
	e.start(s)
	e.until(s.ID, "ready")
	begin := time.Now()
	must(t, e.r.Stop(ctxOf(t), s.ID, time.Minute))
	t.Logf("it ended after %s", time.Since(begin))
	if x := e.wait(s.ID); x.Code != 7 || !x.Stopped {
		t.Errorf("%+v", x)
	}
}
