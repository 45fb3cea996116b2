// Command bench runs the benchmarks that docs/performance.md is written from,
// one after the other, and prints what they found as one table: figures, what
// stands beside them in the same run, and the targets, met or not. It hides how
// go test writes benchmarks down.
//
//	go run ./docs/bench            all of them, as make bench does
//	go run ./docs/bench Killed     those whose name has that in it
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// group is benchmarks of one package that are run together.
type group struct {
	pkg, pattern, rounds string
	tags                 string
}

// groups are what make bench runs. The big ones run once or twice, the small
// ones for as long as go test likes them to.
var groups = []group{
	{"./p2p/content", "^BenchmarkTransfer(Big|Small)$", "2x", ""},
	{"./p2p/content", "^BenchmarkTransfer(Far|Senders|Killed|Memory|Swarm|Update|Liar)$", "1x", ""},
	{"./p2p/content", "^Benchmark(Import|Unpack|Put|OpenMillion|Add20k|Add1G|Private)$", "1x", ""},
	{"./p2p/content", "^BenchmarkGet$", "200ms", ""},
	{"./p2p", "^Benchmark", "500ms", ""},
	{"./node/store", "^Benchmark", "500ms", ""},
	{"./job/sandbox", "^Benchmark", "1x", "payload"},
	{"./cmd/lumbung", "^Benchmark", "1x", "payload e2e"},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run runs the benchmarks and prints the table, also when one of them failed.
func run(ctx context.Context, names []string) error {
	if len(names) > 1 {
		return errors.New("name one part of a benchmark's name, or none for all")
	}
	began := time.Now()
	var all bytes.Buffer
	var errs []error
	fmt.Println(head())
	for _, g := range groups {
		if len(names) == 1 {
			var err error
			if g.pattern, err = g.named(ctx, names[0]); err != nil {
				errs = append(errs, err)
			}
			if g.pattern == "" {
				continue
			}
		}
		if err := g.run(ctx, io.MultiWriter(os.Stdout, &all)); err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", g.pkg, g.pattern, err))
		}
	}
	rows, err := parse(&all)
	errs = append(errs, err)
	fmt.Printf("\n%s\nTook %s.\n\n%s", head(), time.Since(began).Round(time.Second), table(rows))
	return errors.Join(errs...)
}

func (g group) test(ctx context.Context, args ...string) *exec.Cmd {
	args = append([]string{"test", "-tags", g.tags, "-run", "^$"}, args...)
	cmd := exec.CommandContext(ctx, "go", append(args, g.pkg)...)
	cmd.Stderr = os.Stderr
	return cmd
}

// run runs a group and passes on what go test says.
func (g group) run(ctx context.Context, w io.Writer) error {
	cmd := g.test(ctx, "-bench", g.pattern, "-benchtime", g.rounds, "-timeout", "30m")
	cmd.Stdout = w
	return cmd.Run()
}

// named is a pattern for those of the group whose names have a part in them;
// "" for none.
func (g group) named(ctx context.Context, part string) (string, error) {
	out, err := g.test(ctx, "-list", g.pattern).Output()
	if err != nil {
		return "", fmt.Errorf("list the benchmarks of %s: %w", g.pkg, err)
	}
	var found []string
	for name := range strings.Lines(string(out)) {
		name = strings.TrimSpace(name)
		if strings.HasPrefix(name, "Benchmark") && strings.Contains(name, part) {
			found = append(found, regexp.QuoteMeta(name))
		}
	}
	if len(found) == 0 {
		return "", nil
	}
	return "^(" + strings.Join(found, "|") + ")$", nil
}

// head says where and when it ran.
func head() string {
	return fmt.Sprintf("%d cores%s, %s, %s/%s, load %s, %s", runtime.NumCPU(), field("/proc/cpuinfo", "model name"),
		runtime.Version(), runtime.GOOS, runtime.GOARCH, load(), time.Now().UTC().Format("2006-01-02 15:04 MST"))
}

// field is a line of a file of names and values, in brackets.
func field(file, name string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if k, v, found := strings.Cut(lines.Text(), ":"); found && strings.TrimSpace(k) == name {
			return " (" + strings.TrimSpace(v) + ")"
		}
	}
	return ""
}

// load is how busy the machine was over the last minute.
func load() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "not known"
	}
	now, _, _ := strings.Cut(string(raw), " ")
	return now
}
