// Package kernels holds the kernels of `make gpu-check`, which are PTX. What is
// tested here is the PTX, without a card: a small machine that knows the
// instructions of the two kernels runs them. It is no assembler, and says nothing
// of what a driver makes of them.
package kernels

import (
	"fmt"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// kernel is one entry of a PTX file.
type kernel struct {
	params    []string
	registers map[string]int // declared, by kind
	shared    map[string]uint64
	sharedLen uint64
	code      []string
	labels    map[string]int
}

var (
	entryForm  = regexp.MustCompile(`(?s)\.visible \.entry (\w+)\(\s*([^)]*)\)\s*\{(.*?)\n\}`)
	regForm    = regexp.MustCompile(`^\.reg \.\w+ %(\w)<(\d+)>$`)
	sharedForm = regexp.MustCompile(`^\.shared \.align 4 \.b8 (\w+)\[(\d+)\]$`)
	usedForm   = regexp.MustCompile(`%([prfd])(\d+)\b`)
	comment    = regexp.MustCompile(`//[^\n]*`)
)

func readKernels(t *testing.T) map[string]*kernel {
	t.Helper()
	raw, err := os.ReadFile("kernels.ptx")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*kernel{}
	for _, m := range entryForm.FindAllStringSubmatch(comment.ReplaceAllString(string(raw), ""), -1) {
		k := &kernel{registers: map[string]int{}, shared: map[string]uint64{}, labels: map[string]int{}}
		for p := range strings.SplitSeq(m[2], ",") {
			k.params = append(k.params, strings.Fields(p)[2])
		}
		k.parse(t, m[3])
		out[m[1]] = k
	}
	return out
}

func (k *kernel) parse(t *testing.T, body string) {
	t.Helper()
	for line := range strings.SplitSeq(body, "\n") {
		line = strings.TrimSpace(line)
		if label, ok := strings.CutSuffix(line, ":"); ok {
			k.labels[label] = len(k.code)
			continue
		}
		line, ok := strings.CutSuffix(line, ";")
		if line == "" {
			continue
		}
		if !ok {
			t.Fatalf("%q does not end with a semicolon", line)
		}
		if m := regForm.FindStringSubmatch(line); m != nil {
			k.registers[m[1]], _ = strconv.Atoi(m[2])
		} else if m := sharedForm.FindStringSubmatch(line); m != nil {
			size, _ := strconv.Atoi(m[2])
			k.shared[m[1]] = k.sharedLen
			k.sharedLen += uint64(size)
		} else {
			k.code = append(k.code, line)
		}
		for _, m := range usedForm.FindAllStringSubmatch(line, -1) {
			if n, _ := strconv.Atoi(m[2]); n >= k.registers[m[1]] {
				t.Errorf("%q uses a register that is not declared", line)
			}
		}
	}
}

// thread is one thread of a block.
type thread struct {
	k       *kernel
	special map[string]uint64
	reg     map[string]uint64
	pc      int
	over    bool
}

// machine is what all threads share.
type machine struct {
	t      *testing.T
	global []float32 // addresses are bytes from its start
	shared []float32
	params map[string]uint64
}

// launch runs a grid, block by block; threads of a block meet at barriers.
func (m *machine) launch(k *kernel, grid, block [2]uint64, params ...uint64) {
	m.params = map[string]uint64{}
	for i, p := range k.params {
		m.params[p] = params[i]
	}
	for by := range grid[1] {
		for bx := range grid[0] {
			m.shared = make([]float32, k.sharedLen/4)
			var threads []*thread
			for y := range block[1] {
				for x := range block[0] {
					threads = append(threads, &thread{k: k, reg: map[string]uint64{}, special: map[string]uint64{
						"%ctaid.x": bx, "%ctaid.y": by, "%ntid.x": block[0], "%tid.x": x, "%tid.y": y,
					}})
				}
			}
			for running := true; running && !m.t.Failed(); {
				running = false
				for _, th := range threads {
					th.toBarrier(m)
					running = running || !th.over
				}
			}
		}
	}
}

func (th *thread) toBarrier(m *machine) {
	for !th.over && !m.t.Failed() {
		if th.pc >= len(th.k.code) {
			m.t.Error("a thread runs out of the kernel")
			return
		}
		line := th.k.code[th.pc]
		th.pc++
		if line == "bar.sync 0" {
			return
		}
		if err := th.step(m, line); err != nil {
			m.t.Errorf("%q: %v", line, err)
		}
	}
}

// value is what an operand stands for.
func (th *thread) value(s string) uint64 {
	if v, ok := th.special[s]; ok {
		return v
	}
	if strings.HasPrefix(s, "%") {
		return th.reg[s]
	}
	if at, ok := th.k.shared[s]; ok {
		return at
	}
	if bits, ok := strings.CutPrefix(s, "0f"); ok {
		v, _ := strconv.ParseUint(bits, 16, 32)
		return v
	}
	v, _ := strconv.ParseUint(s, 10, 64)
	return v
}

// address is the byte that [register+offset] stands for.
func (th *thread) address(s string) uint64 {
	base, offset, _ := strings.Cut(strings.Trim(s, "[]"), "+")
	return th.value(base) + th.value(offset)
}

func float(bits uint64) float32 { return math.Float32frombits(uint32(bits)) }
func bits(f float32) uint64     { return uint64(math.Float32bits(f)) }

func (th *thread) step(m *machine, line string) error {
	guard, rest, guarded := strings.Cut(line, " ")
	if guarded && strings.HasPrefix(guard, "@") {
		if th.value(guard[1:]) == 0 {
			return nil
		}
		line = rest
	}
	op, args, _ := strings.Cut(line, " ")
	a := strings.Split(strings.ReplaceAll(args, " ", ""), ",")
	at := func(memory []float32, s string) (*float32, error) {
		i := th.address(s)
		if i%4 != 0 || i/4 >= uint64(len(memory)) {
			return nil, fmt.Errorf("address %d is outside", i)
		}
		return &memory[i/4], nil
	}
	switch op {
	case "ret":
		th.over = true
	case "bra":
		th.pc = th.k.labels[a[0]]
	case "ld.param.u64", "ld.param.u32":
		v, ok := m.params[strings.Trim(a[1], "[]")]
		if !ok {
			return fmt.Errorf("no such parameter")
		}
		th.reg[a[0]] = v
	case "mov.u32", "mov.f32", "cvta.to.global.u64":
		th.reg[a[0]] = th.value(a[1])
	case "add.u32":
		th.reg[a[0]] = uint64(uint32(th.value(a[1]) + th.value(a[2])))
	case "add.u64":
		th.reg[a[0]] = th.value(a[1]) + th.value(a[2])
	case "shl.b32":
		th.reg[a[0]] = uint64(uint32(th.value(a[1])) << th.value(a[2]))
	case "mul.wide.u32":
		th.reg[a[0]] = uint64(uint32(th.value(a[1]))) * uint64(uint32(th.value(a[2])))
	case "mad.lo.u32":
		th.reg[a[0]] = uint64(uint32(th.value(a[1])*th.value(a[2]) + th.value(a[3])))
	case "setp.ge.u32":
		th.reg[a[0]] = truth(uint32(th.value(a[1])) >= uint32(th.value(a[2])))
	case "setp.lt.u32":
		th.reg[a[0]] = truth(uint32(th.value(a[1])) < uint32(th.value(a[2])))
	case "add.rn.f32":
		th.reg[a[0]] = bits(float(th.value(a[1])) + float(th.value(a[2])))
	case "fma.rn.f32":
		th.reg[a[0]] = bits(float32(math.FMA(float64(float(th.value(a[1]))), float64(float(th.value(a[2]))), float64(float(th.value(a[3]))))))
	case "ld.global.f32", "ld.shared.f32", "st.global.f32", "st.shared.f32":
		memory := m.global
		if strings.Contains(op, "shared") {
			memory = m.shared
		}
		if strings.HasPrefix(op, "ld") {
			p, err := at(memory, a[1])
			if err != nil {
				return err
			}
			th.reg[a[0]] = bits(*p)
			return nil
		}
		p, err := at(memory, a[0])
		if err != nil {
			return err
		}
		*p = float(th.value(a[1]))
	default:
		return fmt.Errorf("not an instruction of this machine")
	}
	return nil
}

func truth(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

func TestVadd(t *testing.T) {
	const n, threads = 75, 32 // the last block is not full
	m := &machine{t: t, global: make([]float32, 3*n)}
	for i := range 2 * n {
		m.global[i] = float32(i*i) / 3
	}
	m.launch(readKernels(t)["vadd"], [2]uint64{(n + threads - 1) / threads, 1}, [2]uint64{threads, 1}, 0, 4*n, 8*n, n)
	for i := range n {
		if got, want := m.global[2*n+i], m.global[i]+m.global[n+i]; got != want {
			t.Fatalf("element %d is %g, want %g", i, got, want)
		}
	}
}

func TestGemm(t *testing.T) {
	const n = 48
	m := &machine{t: t, global: make([]float32, 3*n*n)}
	for i := range 2 * n * n {
		m.global[i] = float32(i%23) - float32(i%7)
	}
	m.launch(readKernels(t)["gemm"], [2]uint64{n / 16, n / 16}, [2]uint64{16, 16}, 0, 4*n*n, 8*n*n, n)
	for row := range n {
		for column := range n {
			var want float32 // whole numbers below 2^24: exact in any order
			for k := range n {
				want += m.global[row*n+k] * m.global[n*n+k*n+column]
			}
			if got := m.global[2*n*n+row*n+column]; got != want {
				t.Fatalf("element %d,%d is %g, want %g", row, column, got, want)
			}
		}
	}
}
