package main

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// row is what one benchmark found.
type row struct {
	name   string
	values []value
}

// value is one figure. A bound is what it is held against, such as ">=0.68".
type value struct {
	number float64
	name   string
	bound  string
}

var (
	procs = regexp.MustCompile(`-\d+$`)
	bound = regexp.MustCompile(`^(.+)\((>=|<=|<)([0-9.]+)\)$`)
)

// parse reads what go test wrote. A benchmark's figures stand in one line with
// its name, or in a line after it where it logged something.
func parse(r io.Reader) ([]row, error) {
	var rows []row
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	name := ""
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) > 0 && strings.HasPrefix(f[0], "Benchmark") {
			name = procs.ReplaceAllString(strings.TrimPrefix(f[0], "Benchmark"), "")
			f = f[1:]
		}
		if len(f) < 3 || len(f)%2 == 0 || name == "" {
			continue
		}
		if values, found := figures(f[1:]); found && isCount(f[0]) {
			rows = append(rows, row{name, values})
			name = ""
		}
	}
	return rows, lines.Err()
}

func isCount(s string) bool { _, err := strconv.Atoi(s); return err == nil }

// figures are pairs of a number and its unit.
func figures(f []string) ([]value, bool) {
	var out []value
	for pair := range slices.Chunk(f, 2) {
		n, err := strconv.ParseFloat(pair[0], 64)
		if err != nil {
			return nil, false
		}
		v := value{number: n, name: pair[1]}
		if m := bound.FindStringSubmatch(pair[1]); m != nil {
			v.name, v.bound = m[1], m[2]+m[3]
		}
		out = append(out, v)
	}
	return out, true
}

// met says whether a figure keeps to its bound.
func (v value) met() bool {
	is := strings.TrimRight(v.bound, "0123456789.")
	n, _ := strconv.ParseFloat(v.bound[len(is):], 64) // parse has seen a number there
	switch is {
	case ">=":
		return v.number >= n
	case "<=":
		return v.number <= n
	default:
		return v.number < n
	}
}

// ways are the first parts of the names of figures that belong together: of one
// way to do the same.
var ways = []string{"ours", "bare", "raw", "tls", "disk", "bitswap", "tar", "sha256sum", "whole", "lazy", "runsc", "runc", "host"}

// text puts together what has no bound: way by way, then the rest.
func (r row) text() string {
	var parts, rest []string
	for _, way := range ways {
		var of []string
		for _, v := range r.values {
			if unit, found := strings.CutPrefix(v.name, way+"-"); found && v.bound == "" && v.ofWay() {
				of = append(of, v.format()+" "+unit)
			}
		}
		if len(of) > 0 {
			parts = append(parts, way+" "+strings.Join(of, ", "))
		}
	}
	for _, v := range r.values {
		if v.bound == "" && !v.ofWay() && (v.name != "ns/op" || v.number != 0) {
			rest = append(rest, v.text())
		}
	}
	return strings.Join(append(parts, rest...), "; ")
}

// ofWay says whether a figure is the time, the rate or the cost of a way.
func (v value) ofWay() bool {
	way, unit, _ := strings.Cut(v.name, "-")
	return slices.Contains(ways, way) && slices.Contains([]string{"s", "MiB/s", "cpu-s", "cpu-s/GiB", "MiB-sent"}, unit)
}

// text is a figure with its name, and a time as people say it.
func (v value) text() string {
	if v.name != "ns/op" {
		return v.format() + " " + v.name
	}
	d := time.Duration(v.number)
	for unit := time.Second; unit >= time.Microsecond; unit /= 1000 {
		if d >= unit {
			return d.Round(unit/1000).String() + " each"
		}
	}
	return d.String() + " each"
}

// format has three digits that count.
func (v value) format() string {
	if v.number >= 1000 || v.number <= -1000 {
		return strconv.FormatFloat(v.number, 'f', 0, 64)
	}
	return strconv.FormatFloat(v.number, 'g', 3, 64)
}

// table is Markdown: a row a target, and one for a benchmark without any.
func table(rows []row) string {
	var w strings.Builder
	fmt.Fprintln(&w, "| benchmark | figures of the same run | held against a target | target | met |\n| --- | --- | --- | --- | --- |")
	for _, r := range rows {
		name, text := r.name, r.text()
		for _, v := range r.values {
			if v.bound == "" {
				continue
			}
			answer := "no"
			if v.met() {
				answer = "yes"
			}
			fmt.Fprintf(&w, "| %s | %s | %s %s | %s | %s |\n", name, text, v.format(), v.name, v.bound, answer)
			name, text = "", ""
		}
		if name != "" {
			fmt.Fprintf(&w, "| %s | %s | | | |\n", name, text)
		}
	}
	return w.String()
}
