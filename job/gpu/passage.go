package gpu

import (
	"path"
	"slices"
	"strings"
)

// Passage is what lets a container use cards: device nodes, files of the driver,
// links and variables, as plain data.
type Passage struct {
	Nodes []Node
	Files []File // read-only
	Links []Link
	Env   []string // NAME=value
	// Folders are where the driver's libraries are inside.
	Folders []string
	// Capabilities are the parts of the driver that the container may use.
	Capabilities []string
}

// Node is a character device, under the same path inside and outside.
type Node struct {
	Path         string
	Major, Minor int64
}

// File is a file of the host, or a folder, and where it is inside.
type File struct{ Source, Dest string }

// Link is a symbolic link inside.
type Link struct{ Path, Target string }

// passed are the device nodes that gVisor's nvproxy stands for, beside those of
// the cards themselves; others, as those of the display, it does not know.
var passed = []string{"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"}

// passable reports whether a device node of an NVIDIA card can be in a
// container.
func passable(p string) bool {
	if slices.Contains(passed, p) {
		return true
	}
	number, ok := strings.CutPrefix(p, "/dev/nvidia")
	return ok && number != "" && strings.Trim(number, "0123456789") == ""
}

// parts tells which part of the driver a library is of, by the beginnings of
// their names; one that is not here belongs to all.
var parts = []struct {
	capability string
	names      []string
}{
	{"video", []string{"libnvcuvid", "libnvidia-encode", "libnvidia-opticalflow", "libvdpau_nvidia"}},
	{"ngx", []string{"libnvidia-ngx", "_nvngx", "nvngx", "libnvidia-api"}},
	{"graphics", []string{
		"libGL", "libEGL", "libOpenGL", "libglxserver", "libnvidia-egl", "libnvidia-eglcore", "libnvidia-fbc", "libnvidia-glcore",
		"libnvidia-glsi", "libnvidia-glvkspirv", "libnvidia-gtk", "libnvidia-rtcore", "libnvidia-tls", "libnvidia-vulkan", "libnvidia-wayland",
		"libnvidia-present", "libnvoptix", "nvoptix", "libnvidia-allocator", "libnvidia-sandboxutils", "nvidia_drv", "10_nvidia", "15_nvidia",
		"20_nvidia", "nvidia_icd", "nvidia_layers", "10-nvidia", "nvidia-application-profiles", "nvidia-drm_gbm",
	}},
}

// never are files that a container has no use for: sockets of the host's
// services, and firmware that the host's kernel loads.
func never(dest string) bool {
	return strings.HasSuffix(dest, "/socket") || strings.HasPrefix(dest, "/run/") || strings.HasPrefix(dest, "/var/run/") ||
		strings.HasPrefix(dest, "/lib/firmware/") || strings.HasPrefix(dest, "/tmp/") ||
		strings.HasPrefix(dest, "/dev/") || strings.HasPrefix(dest, "/proc/") || strings.HasPrefix(dest, "/sys/")
}

// wanted reports whether a file of the driver belongs to one of the parts asked
// for.
func wanted(dest string, capabilities []string) bool {
	if never(dest) {
		return false
	}
	name := path.Base(dest)
	if strings.HasPrefix(name, "nvidia-") && strings.Contains(dest, "/bin/") {
		return slices.Contains(capabilities, "utility")
	}
	for _, p := range parts {
		for _, n := range p.names {
			if strings.HasPrefix(name, n) {
				return slices.Contains(capabilities, p.capability)
			}
		}
	}
	return true
}

// Seal notes of well cards why they cannot be passed into a container, where
// they cannot: MIG instances, drivers that are not among those known, and what
// try finds wrong with a card. It changes nothing that it is given.
func Seal(cards []GPU, drivers []string, try func(uuid string) error) []GPU {
	out := slices.Clone(cards)
	for i, g := range out {
		if g.Fake || !g.Trouble.None() {
			continue
		}
		if why := sealed(g, drivers, try); why != "" {
			out[i].Trouble = Trouble{Kind: KindDevices, Text: why}
		}
	}
	return out
}

func sealed(g GPU, drivers []string, try func(uuid string) error) string {
	if g.Parent != "" {
		return "gVisor passes no MIG instances into containers yet: switch MIG off to let the whole card"
	}
	if !slices.Contains(drivers, g.Driver) {
		return "gVisor cannot pass a card of driver " + g.Driver + " into a container; it knows " + near(g.Driver, drivers)
	}
	if err := try(g.UUID); err != nil {
		return err.Error()
	}
	return ""
}

// near names the drivers of the same branch, or else the newest that are known.
func near(driver string, drivers []string) string {
	branch, _, _ := strings.Cut(driver, ".")
	same := slices.DeleteFunc(slices.Clone(drivers), func(d string) bool { return !strings.HasPrefix(d, branch+".") })
	if len(same) == 0 {
		same = drivers[max(0, len(drivers)-4):]
	}
	if len(same) == 0 {
		return "none"
	}
	return strings.Join(same, ", ")
}

// Try reports why a card of this machine cannot be passed into a container.
func Try(uuid string) error {
	_, err := Pass([]string{uuid}, DefaultCapabilities)
	return err
}
