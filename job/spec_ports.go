package job

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// PortSpec makes a TCP port of the container one of the renter's own machine,
// on its loopback. Local 0 is one that the system picks.
type PortSpec struct {
	Local  uint16 `json:"local,omitempty"`
	Remote uint16 `json:"remote"`
}

// String is what ParsePort reads.
func (p PortSpec) String() string { return fmt.Sprintf("%d:%d", p.Local, p.Remote) }

// maxPorts bounds the ports of a job.
const maxPorts = 16

// ParsePort reads LOCAL:REMOTE, or REMOTE alone for any local port.
func ParsePort(s string) (PortSpec, error) {
	local, remote, both := strings.Cut(s, ":")
	if !both {
		local, remote = "0", s
	}
	l, err1 := strconv.ParseUint(local, 10, 16)
	r, err2 := strconv.ParseUint(remote, 10, 16)
	if err1 != nil || err2 != nil || r == 0 {
		return PortSpec{}, fmt.Errorf("%q is not LOCAL:REMOTE, such as 8080:80, or one port", s)
	}
	return PortSpec{Local: uint16(l), Remote: uint16(r)}, nil
}

func (s Spec) validatePorts() error {
	switch {
	case len(s.Ports) == 0:
		return nil
	case s.Array != nil:
		return specErr("ports: an array has none of its own; reach a task with `lumbung port --task N`")
	case len(s.Ports) > maxPorts:
		return specErr("ports: %d, over %d", len(s.Ports), maxPorts)
	}
	seen := map[uint16]bool{}
	for i, p := range s.Ports {
		if p.Remote == 0 {
			return specErr("ports[%d].remote: missing", i)
		}
		if p.Local != 0 && seen[p.Local] {
			return specErr("ports[%d].local: %d is used twice", i, p.Local)
		}
		seen[p.Local] = true
	}
	return nil
}

// ports reads a list of LOCAL:REMOTE, or of {local, remote}.
func (f *specFile) ports(n ast.Node, at string) (out []PortSpec, err error) {
	err = f.list(n, at, func(n ast.Node, at string) error {
		var p PortSpec
		err := error(nil)
		if isScalar(n) {
			err = scalar(f, &p, ParsePort)(n, at)
		} else {
			err = f.mapping(n, at, keys{"local": scalar(f, &p.Local, parsePortNumber), "remote": scalar(f, &p.Remote, parsePortNumber)})
		}
		out = append(out, p)
		return err
	})
	return out, err
}

func parsePortNumber(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no port: want 1 to 65535", s)
	}
	return uint16(n), nil
}
