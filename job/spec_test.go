package job

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParseSize(t *testing.T) {
	for in, want := range map[string]uint64{
		"0": 0, "1": 1, "1000": 1000, "5b": 5, "1kB": 1000, "512MB": 512e6, "16GB": 16e9, "16gb": 16e9, "2TB": 2e12,
		"1KiB": 1024, "16GiB": 16 << 30, "16g": 16 << 30, "512m": 512 << 20, "4G": 4 << 30, "1.5GB": 1.5e9, "1.5GiB": 3 << 29,
		"0.1GB": 100e6, ".5k": 512, " 8 GB ": 8e9, "0.0001kB": 0, "18446744073709551615": math.MaxUint64,
		"18.446744073709551615EB": 0,
	} {
		got, err := ParseSize(in)
		if in == "18.446744073709551615EB" {
			if err == nil {
				t.Errorf("%q = %d", in, got)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("%q = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", ".", "GB", "-1", "+1", "1e9", "1.2.3", "16 giga", "1,5GB", "18446744073709551616", "99999999PB", "0x10", "1_000"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("%q = %d, want an error", in, got)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 1999: "1.9 kB", 1_500_000: "1.5 MB", 16e9: "16.0 GB", 999_999: "999.9 kB", math.MaxUint64: "18.4 EB",
	} {
		if got := FormatSize(n); got != want {
			t.Errorf("%d = %s, want %s", n, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint64Range(0, 999e15).Draw(t, "n")
		back, err := ParseSize(FormatSize(n))
		if err != nil || back > n || n-back > n/10 {
			t.Fatalf("%d shown as %s, read as %d, %v", n, FormatSize(n), back, err)
		}
	})
}

func TestParseCPUs(t *testing.T) {
	for in, want := range map[string]uint32{"1": 1000, "0.5": 500, "4": 4000, "0.001": 1, "1.2500": 1250, " 2 ": 2000, "4096": 4_096_000} {
		if got, err := ParseCPUs(in); err != nil || got != want {
			t.Errorf("%q = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "0", "0.0001", "-1", "4097", "two", "1e1", "0.0005"} {
		if got, err := ParseCPUs(in); err == nil {
			t.Errorf("%q = %d, want an error", in, got)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for in, want := range map[string]time.Duration{"90s": 90 * time.Second, "1h30m": 90 * time.Minute, "2d": 48 * time.Hour, "400d": maxDuration, "1ms": time.Millisecond} {
		if got, err := ParseDuration(in); err != nil || got != want {
			t.Errorf("%q = %s, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", "90", "1 hour", "0s", "-1m", "1us", "401d", "1.5d", "d", "99999999h", "65536d"} {
		if got, err := ParseDuration(in); err == nil {
			t.Errorf("%q = %s, want an error", in, got)
		}
	}
}

func TestParseRange(t *testing.T) {
	for in, want := range map[string][3]int{"1-240": {1, 240, 0}, "1-240:4": {1, 240, 4}, "7": {7, 7, 0}, "0-0:1": {0, 0, 1}, " 3-5 ": {3, 5, 0}} {
		first, last, chunk, err := ParseRange(in)
		if err != nil || [3]int{first, last, chunk} != want {
			t.Errorf("%q = %d-%d:%d, %v; want %v", in, first, last, chunk, err, want)
		}
	}
	for _, in := range []string{"", "-", "1-", "-5", "1-2-3", "1-2:", "1-2:0", "5-1", "a-b", "1-99999999999", "1:2:3", "1 - 2"} {
		if first, last, chunk, err := ParseRange(in); err == nil {
			t.Errorf("%q = %d-%d:%d, want an error", in, first, last, chunk)
		}
	}
}

func TestParseGPUs(t *testing.T) {
	for in, want := range map[string]GPUWish{
		"1": {Count: 1}, "0": {}, "16": {Count: 16}, "all": {All: true}, "rtx4090": {Count: 1, Any: []string{"rtx4090"}},
		"rtx4090:2": {Count: 2, Any: []string{"rtx4090"}}, "rtx4090:all": {All: true, Any: []string{"rtx4090"}},
		"RTX4090,rtx3090,rtx4090:1": {Count: 1, Any: []string{"rtx4090", "rtx3090"}},
		"vram>=24GB":                {Count: 1, VRAM: 24e9}, "vram>=24GB:2": {Count: 2, VRAM: 24e9}, "a100-40,vram>=40GB": {Count: 1, Any: []string{"a100-40"}, VRAM: 40e9},
		"cuda>=12.4": {Count: 1, CUDA: "12.4"}, "h200,cuda>=13:2": {Count: 2, Any: []string{"h200"}, CUDA: "13"},
	} {
		if got, err := ParseGPUs(in); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for in, remedy := range map[string]string{
		"": "vram>=24GB", "17": "", "-1": "", ":2": "", "rtx4090:": "", "rtx4090:x": "", "rtx4090:17": "", "rtx490": "did you mean rtx4090",
		"vram>=": "", "vram>=0": "", "vram>24GB": "", "vram>=1GB,vram>=2GB": "", "rtx4090,,rtx3090": "", "nothing-like-it-at-all": "such as rtx4090",
		"cuda>=": "cuda>=12.4", "cuda>=x": "", "cuda>12": "", "cuda>=12,cuda>=13": "",
	} {
		if got, err := ParseGPUs(in); err == nil || !strings.Contains(err.Error(), remedy) {
			t.Errorf("%q = %+v, %v; want an error with %q", in, got, err, remedy)
		}
	}
}

func TestExpand(t *testing.T) {
	s := Spec{
		Array:   &Array{First: 1, Last: 10, Chunk: 4},
		Command: []string{"${LUMBUNG_INDEX}/${LUMBUNG_FIRST}-${LUMBUNG_LAST}", "$$x $${LUMBUNG_JOB} ${HOME} $HOME ${", "$", "a$$$$b", "${LUMBUNG_JOB}${LUMBUNG_JOB}"},
		Env:     map[string]string{"OUT": "f_${LUMBUNG_FIRST}", "P": "${PATH}"},
	}
	command, env, err := Expand(s, "j7", 2)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"2/9-10", "$x ${LUMBUNG_JOB} ${HOME} $HOME ${", "$", "a$$b", "j7j7"}; !reflect.DeepEqual(command, want) {
		t.Errorf("command %q, want %q", command, want)
	}
	want := map[string]string{"OUT": "f_9", "P": "${PATH}", "LUMBUNG_INDEX": "2", "LUMBUNG_FIRST": "9", "LUMBUNG_LAST": "10", "LUMBUNG_JOB": "j7"}
	if !reflect.DeepEqual(env, want) {
		t.Errorf("env %v, want %v", env, want)
	}
	s.Array, s.Command, s.Env = nil, nil, nil
	command, env, err = Expand(s, "j7", 0)
	if err != nil || command != nil || !reflect.DeepEqual(env, map[string]string{"LUMBUNG_JOB": "j7"}) {
		t.Errorf("one task: %v, %v, %v", command, env, err)
	}
}

func TestNearestIsTheFewestEdits(t *testing.T) {
	for word, want := range map[string]string{"memry": "memory", "disk": "disk", "dsik": "disk", "xyzxyzxyz": "", "cpu": "cpus"} {
		if got := nearest(word, []string{"cpus", "disk", "memory"}); got != want {
			t.Errorf("nearest to %q is %q, want %q", word, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringMatching(`[a-c]{0,6}`)
		a, b, c := word.Draw(t, "a"), word.Draw(t, "b"), word.Draw(t, "c")
		ab, ba, ac, bc := edits(a, b), edits(b, a), edits(a, c), edits(b, c)
		if ab != ba || (ab == 0) != (a == b) || ac > ab+bc {
			t.Fatalf("edits %q %q %q: %d %d %d %d", a, b, c, ab, ba, ac, bc)
		}
	})
}

func TestTasksCoverTheRangeOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.IntRange(0, 1000).Draw(t, "first")
		s := Spec{Array: &Array{First: first, Last: first + rapid.IntRange(0, 500).Draw(t, "more"), Chunk: rapid.IntRange(1, 60).Draw(t, "chunk")}}
		next := first
		for task := range s.Tasks() {
			from, to := s.Range(task)
			if from != next || to < from {
				t.Fatalf("task %d is %d-%d, want it to begin at %d", task, from, to, next)
			}
			next = to + 1
		}
		if next != s.Array.Last+1 {
			t.Fatalf("the tasks end at %d of %d", next-1, s.Array.Last)
		}
	})
}

func TestSpecNetwork(t *testing.T) {
	s := Spec{Image: "x", Network: NetworkOutbound}.WithDefaults()
	if err := s.Validate(); err != nil || s.Limits.Net != DefaultNet {
		t.Errorf("%v, limit %d", err, s.Limits.Net)
	}
	s = Spec{Image: "x"}.WithDefaults()
	if err := s.Validate(); err != nil || s.Network != "none" || s.Limits.Net != 0 {
		t.Errorf("%v: %s, limit %d", err, s.Network, s.Limits.Net)
	}
	s.Limits.Net = 1
	if err := s.Validate(); !errors.Is(err, ErrSpec) {
		t.Errorf("a limit of nothing: %v", err)
	}
}
