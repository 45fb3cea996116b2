package sandbox

import (
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Devices are the graphics cards of a container, and the files of their driver.
// They are the node's own data, made by whoever reserved the cards; the zero
// value is none. gVisor's nvproxy stands between the container and the driver.
type Devices struct {
	Nodes []DeviceNode `json:"nodes,omitempty"`
	// Files are shown read-only over what the image has.
	Files []Mount `json:"files,omitempty"`
	Links []Link  `json:"links,omitempty"`
	// Capabilities are the parts of the driver that nvproxy lets through.
	Capabilities []string `json:"capabilities,omitempty"`
}

// DeviceNode is a character device under the same path inside and outside.
type DeviceNode struct {
	Path         string `json:"path"`
	Major, Minor int64
}

// Link is a symbolic link inside the container.
type Link struct {
	Path   string `json:"path"`
	Target string `json:"target"`
}

// Bounds of Devices: drivers have some sixty files.
const (
	maxNodes = 64
	maxFiles = 256
)

var (
	nodeForm       = regexp.MustCompile(`^/dev/nvidia[a-z0-9-]*(/nvidia-cap[0-9]+)?$`)
	capabilityForm = regexp.MustCompile(`^[a-z0-9]{1,32}$`)
)

// none reports whether there are no cards.
func (d Devices) none() bool { return len(d.Nodes) == 0 }

func (d Devices) validate(bad func(string, ...any) error) error {
	switch {
	case len(d.Nodes) > maxNodes, len(d.Files) > maxFiles, len(d.Links) > maxFiles, len(d.Capabilities) > maxNodes:
		return bad("%d device nodes, %d files and %d links, over %d and %d", len(d.Nodes), len(d.Files), len(d.Links), maxNodes, maxFiles)
	case d.none() && len(d.Files)+len(d.Links)+len(d.Capabilities) > 0:
		return bad("files of a driver without a device")
	}
	for _, n := range d.Nodes {
		if !nodeForm.MatchString(n.Path) || n.Major <= 0 || n.Minor < 0 {
			return bad("%.80q (%d:%d) is no device of an NVIDIA card", n.Path, n.Major, n.Minor)
		}
	}
	for _, f := range d.Files {
		if !filepath.IsAbs(f.Source) || !f.ReadOnly || !driverPath(f.Dest) {
			return bad("file %q of the driver cannot be shown at %q", f.Source, f.Dest)
		}
	}
	for _, l := range d.Links {
		if !driverPath(l.Path) || l.Target == "" || strings.ContainsAny(l.Target, "\x00\n") {
			return bad("link %q to %q cannot be made", l.Path, l.Target)
		}
	}
	for _, c := range d.Capabilities {
		if !capabilityForm.MatchString(c) {
			return bad("%.40q is no part of a driver", c)
		}
	}
	return nil
}

// driverPath reports whether a file of the driver may be at p inside.
func driverPath(p string) bool {
	if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsAny(p, "\x00\n") {
		return false
	}
	return !slices.ContainsFunc(reserved, func(r string) bool {
		return p == r || r != "/" && strings.HasPrefix(p, r+"/")
	})
}
