package sandbox

import (
	"errors"
	"strings"
	"testing"
)

// oneCard are the devices of a container with one card.
func oneCard() Devices {
	return Devices{
		Nodes: []DeviceNode{
			{Path: "/dev/nvidia-uvm", Major: 510}, {Path: "/dev/nvidia0", Major: 195}, {Path: "/dev/nvidiactl", Major: 195, Minor: 255},
		},
		Files:        []Mount{{Source: "/host/libcuda.so.580", Dest: "/usr/lib/libcuda.so.580", ReadOnly: true}},
		Links:        []Link{{Path: "/usr/lib/libcuda.so.1", Target: "libcuda.so.580"}},
		Capabilities: []string{"compute", "utility"},
	}
}

func TestDevicesValidate(t *testing.T) {
	spec := Spec{ID: "a", Rootfs: "/x", Args: []string{"/p"}}.withDefaults()
	for name, c := range map[string]struct {
		change func(*Devices)
		want   string
	}{
		"one card":               {func(*Devices) {}, ""},
		"none":                   {func(d *Devices) { *d = Devices{} }, ""},
		"the host's disk":        {func(d *Devices) { d.Nodes[1].Path = "/dev/sda" }, "no device of an NVIDIA card"},
		"a way around":           {func(d *Devices) { d.Nodes[1].Path = "/dev/nvidia0/../sda" }, "no device of an NVIDIA card"},
		"no numbers":             {func(d *Devices) { d.Nodes[1].Major = 0 }, "no device of an NVIDIA card"},
		"files that are written": {func(d *Devices) { d.Files[0].ReadOnly = false }, "cannot be shown"},
		"a file over /proc":      {func(d *Devices) { d.Files[0].Dest = "/proc/driver" }, "cannot be shown"},
		"a relative file":        {func(d *Devices) { d.Files[0].Source = "libcuda.so" }, "cannot be shown"},
		"a link over /dev":       {func(d *Devices) { d.Links[0].Path = "/dev/x" }, "cannot be made"},
		"a link to nothing":      {func(d *Devices) { d.Links[0].Target = "" }, "cannot be made"},
		"a flag":                 {func(d *Devices) { d.Capabilities[0] = "compute,all" }, "no part of a driver"},
		"files alone":            {func(d *Devices) { d.Nodes = nil }, "without a device"},
		"too many":               {func(d *Devices) { d.Files = make([]Mount, maxFiles+1) }, "over"},
	} {
		s := spec
		s.Devices = oneCard()
		c.change(&s.Devices)
		err := s.Validate()
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
