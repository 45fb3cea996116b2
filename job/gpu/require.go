package gpu

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxRequire bounds the text of a Require, in bytes. NVIDIA's own images have
// some hundred.
const MaxRequire = 2048

// Require is what an image needs of driver and card, as images say it in
// NVIDIA_REQUIRE_CUDA: alternatives, each of conditions that hold together.
type Require struct {
	any [][]condition
}

type condition struct {
	what, op, value string
}

// operators in the order in which they are looked for.
var operators = []string{">=", "<=", "!=", ">", "<", "="}

// ParseRequire reads a requirement: conditions such as cuda>=12.4, driver<536,
// arch>=7.0 or brand=tesla, commas for "and", blanks for "or". The empty text
// requires nothing. Errors name the condition that is none.
func ParseRequire(text string) (Require, error) {
	if len(text) > MaxRequire {
		return Require{}, fmt.Errorf("a requirement of %d bytes, over %d", len(text), MaxRequire)
	}
	var r Require
	for _, alternative := range strings.Fields(text) {
		var all []condition
		for part := range strings.SplitSeq(alternative, ",") {
			c, err := parseCondition(part)
			if err != nil {
				return Require{}, err
			}
			all = append(all, c)
		}
		r.any = append(r.any, all)
	}
	return r, nil
}

func parseCondition(text string) (condition, error) {
	bad := func(why string) (condition, error) {
		return condition{}, fmt.Errorf("%.64q %s; write cuda>=12.4, driver>=535, arch>=8.0 or brand=tesla, with commas for and, blanks for or", text, why)
	}
	at := strings.IndexAny(text, "<>=!")
	if at < 0 {
		return bad("compares nothing")
	}
	c := condition{what: text[:at]}
	i := slices.IndexFunc(operators, func(op string) bool { return strings.HasPrefix(text[at:], op) })
	if i < 0 {
		return bad("has no comparison that is known")
	}
	c.op = operators[i]
	c.value = text[at+len(c.op):]
	switch c.what {
	case "cuda", "driver", "arch":
		if _, ok := version(c.value); !ok {
			return bad("has no version to compare with")
		}
	case "brand":
		if c.op != "=" && c.op != "!=" || c.value == "" || strings.ContainsAny(c.value, "<>=!") {
			return bad("is no comparison of a brand")
		}
	default:
		return bad("is about something that is not known")
	}
	return c, nil
}

// String is the text that parses to the same.
func (r Require) String() string {
	alternatives := make([]string, len(r.any))
	for i, all := range r.any {
		parts := make([]string, len(all))
		for j, c := range all {
			parts[j] = c.what + c.op + c.value
		}
		alternatives[i] = strings.Join(parts, ",")
	}
	return strings.Join(alternatives, " ")
}

// MetBy reports whether a card and its driver are enough. What the driver does
// not tell of a card fails every condition about it.
func (r Require) MetBy(g GPU) bool {
	if len(r.any) == 0 {
		return true
	}
	return slices.ContainsFunc(r.any, func(all []condition) bool {
		return !slices.ContainsFunc(all, func(c condition) bool { return !c.metBy(g) })
	})
}

func (c condition) metBy(g GPU) bool {
	if c.what == "brand" {
		return (g.Brand == c.value) == (c.op == "=")
	}
	has := map[string]string{"cuda": g.CUDA, "driver": g.Driver, "arch": g.Compute}[c.what]
	a, ok := version(has)
	b, ok2 := version(c.value)
	if !ok || !ok2 {
		return false
	}
	d := compareVersions(a, b)
	switch c.op {
	case ">=":
		return d >= 0
	case "<=":
		return d <= 0
	case ">":
		return d > 0
	case "<":
		return d < 0
	case "!=":
		return d != 0
	}
	return d == 0
}

// maxParts is how many numbers a version has at most.
const maxParts = 8

// version reads numbers between dots.
func version(s string) ([]uint64, bool) {
	parts := strings.Split(s, ".")
	if len(parts) > maxParts {
		return nil, false
	}
	out := make([]uint64, len(parts))
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 32)
		if err != nil {
			return nil, false
		}
		out[i] = n
	}
	return out, true
}

// compareVersions compares number by number; a number that is missing is 0.
func compareVersions(a, b []uint64) int {
	for len(a) < len(b) {
		a = append(a, 0)
	}
	for len(b) < len(a) {
		b = append(b, 0)
	}
	return slices.Compare(a, b)
}

// IsVersion reports whether a text is a version such as "12.4".
func IsVersion(s string) bool {
	_, ok := version(s)
	return ok
}

// AtLeast reports whether a version is as new as another; false when one is
// none.
func AtLeast(have, want string) bool {
	a, ok := version(have)
	b, ok2 := version(want)
	return ok && ok2 && compareVersions(a, b) >= 0
}

// Capabilities are the parts of a driver that a job may ask for, in the words of
// NVIDIA_DRIVER_CAPABILITIES; those that gVisor passes.
var Capabilities = []string{"compute", "utility", "video", "graphics", "ngx"}

// DefaultCapabilities are what a job gets that asks for none.
var DefaultCapabilities = []string{"compute", "utility"}
