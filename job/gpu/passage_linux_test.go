//go:build linux && cgo

package gpu

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"golang.org/x/sys/unix"
)

// driverFiles are what an installed driver has, as far as matters here.
var driverFiles = []string{
	"usr/lib/x86_64-linux-gnu/libcuda.so." + mockDriver,
	"usr/lib/x86_64-linux-gnu/libnvidia-ml.so." + mockDriver,
	"usr/lib/x86_64-linux-gnu/libnvidia-ptxjitcompiler.so." + mockDriver,
	"usr/lib/x86_64-linux-gnu/libnvidia-nvvm.so." + mockDriver,
	"usr/lib/x86_64-linux-gnu/libnvcuvid.so." + mockDriver,
	"usr/lib/x86_64-linux-gnu/libnvidia-encode.so." + mockDriver,
	"usr/lib/x86_64-linux-gnu/libGLX_nvidia.so." + mockDriver,
	"usr/lib/x86_64-linux-gnu/libnvidia-glcore.so." + mockDriver,
	"usr/bin/nvidia-smi",
	"usr/bin/nvidia-persistenced",
	"usr/share/vulkan/icd.d/nvidia_icd.json",
	"lib/firmware/nvidia/" + mockDriver + "/gsp_ga10x.bin",
}

// fakeRoot is the root of a machine with a driver and n cards. The libraries
// carry the names that real ones do.
func fakeRoot(t *testing.T, n int) string {
	t.Helper()
	root := t.TempDir()
	for _, f := range driverFiles {
		name := filepath.Join(root, f)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		library := strings.Contains(f, "libcuda.so.") || strings.Contains(f, "libnvidia-ml.so.")
		if library && makeLibrary(t, name) {
			continue
		}
		if err := os.WriteFile(name, []byte("of the driver\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dev := filepath.Join(root, "dev")
	if err := os.Mkdir(dev, 0o755); err != nil {
		t.Fatal(err)
	}
	node := func(name string, major, minor int) {
		err := unix.Mknod(filepath.Join(dev, name), unix.S_IFCHR|0o666, int(unix.Mkdev(uint32(major), uint32(minor))))
		if errors.Is(err, unix.EPERM) {
			t.Skip("making device nodes needs root outside of a user namespace")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	node("nvidiactl", 195, 255)
	node("nvidia-modeset", 195, 254)
	node("nvidia-uvm", 510, 0)
	node("nvidia-uvm-tools", 510, 1)
	for i := range n {
		node("nvidia"+string(rune('0'+i)), 195, i)
	}
	return root
}

// makeLibrary links an empty library; false where there is no linker.
func makeLibrary(t *testing.T, name string) bool {
	t.Helper()
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "gcc"
	}
	base, _, _ := strings.Cut(filepath.Base(name), ".so.")
	cmd := exec.CommandContext(t.Context(), cc, "-shared", "-nostdlib", "-Wl,-soname,"+base+".so.1", "-o", name, "-x", "c", os.DevNull)
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return false
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return true
}

func passes(t *testing.T, m *machine, root string, capabilities []string, cards ...int) Passage {
	t.Helper()
	var uuids []string
	for _, i := range cards {
		uuids = append(uuids, m.uuid(i))
	}
	p, err := pass(m, root, uuids, capabilities)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p Passage) dests() (out []string) {
	for _, f := range p.Files {
		out = append(out, f.Dest)
	}
	return out
}

// TestPass passes two of three cards of a machine that is made of files.
func TestPass(t *testing.T) {
	root := fakeRoot(t, 3)
	m := newMachine(t, nil, rtx4090, rtx4090, rtx3090)
	p := passes(t, m, root, DefaultCapabilities, 0, 2)
	wantNodes := []Node{
		{"/dev/nvidia-uvm", 510, 0}, {"/dev/nvidia-uvm-tools", 510, 1}, {"/dev/nvidia0", 195, 0}, {"/dev/nvidia2", 195, 2}, {"/dev/nvidiactl", 195, 255},
	}
	if !slices.Equal(p.Nodes, wantNodes) {
		t.Errorf("nodes %v, want %v", p.Nodes, wantNodes)
	}
	const lib = "/usr/lib/x86_64-linux-gnu/"
	want := []string{lib + "libcuda.so." + mockDriver, lib + "libnvidia-ml.so." + mockDriver, lib + "libnvidia-ptxjitcompiler.so." + mockDriver, lib + "libnvidia-nvvm.so." + mockDriver, "/usr/bin/nvidia-smi"}
	got := p.dests()
	for _, f := range want {
		if !slices.Contains(got, f) {
			t.Errorf("%s is not passed; %q are", f, got)
		}
	}
	for _, f := range got {
		if strings.Contains(f, "GLX") || strings.Contains(f, "glcore") || strings.Contains(f, "cuvid") || strings.Contains(f, "firmware") || strings.Contains(f, "vulkan") {
			t.Errorf("%s is passed although neither graphics nor video was wanted", f)
		}
	}
	for _, f := range p.Files {
		if f.Source != filepath.Join(root, f.Dest) {
			t.Errorf("%s comes from %s", f.Dest, f.Source)
		}
	}
	links := map[string]string{}
	for _, l := range p.Links {
		links[l.Path] = l.Target
	}
	if links[lib+"libcuda.so"] != "libcuda.so.1" {
		t.Errorf("links %v", links)
	}
	if _, err := exec.LookPath("gcc"); err == nil && (links[lib+"libcuda.so.1"] != "libcuda.so."+mockDriver || links[lib+"libnvidia-ml.so.1"] == "") {
		t.Errorf("no links of the libraries' own names: %v", links)
	}
	if !slices.Equal(p.Folders, []string{strings.TrimSuffix(lib, "/")}) {
		t.Errorf("folders %q", p.Folders)
	}
	if want := []string{"NVIDIA_VISIBLE_DEVICES=" + m.uuid(0) + "," + m.uuid(2), "NVIDIA_DRIVER_CAPABILITIES=compute,utility"}; !slices.Equal(p.Env, want) {
		t.Errorf("env %q, want %q", p.Env, want)
	}
	all := passes(t, m, root, Capabilities, 1).dests()
	for _, f := range []string{"libGLX_nvidia.so.", "libnvcuvid.so.", "libnvidia-encode.so."} {
		if !slices.Contains(all, lib+f+mockDriver) {
			t.Errorf("%s is not passed although all was wanted: %q", f, all)
		}
	}
	compute := passes(t, m, root, []string{"compute"}, 1).dests()
	if slices.Contains(compute, "/usr/bin/nvidia-smi") {
		t.Error("nvidia-smi is passed without utility")
	}
}

func TestPassLacks(t *testing.T) {
	for name, c := range map[string]struct {
		remove, want string
	}{
		"libcuda":     {"usr/lib/x86_64-linux-gnu/libcuda.so." + mockDriver, "libcuda.so"},
		"uvm":         {"dev/nvidia-uvm", "nvidia-modprobe"},
		"card's node": {"dev/nvidia1", "0 device nodes for 1 cards"},
	} {
		t.Run(name, func(t *testing.T) {
			root := fakeRoot(t, 2)
			if err := os.Remove(filepath.Join(root, c.remove)); err != nil {
				t.Fatal(err)
			}
			m := newMachine(t, nil, rtx4090, rtx4090)
			if p, err := pass(m, root, []string{m.uuid(1)}, DefaultCapabilities); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v, %v; want an error with %q", p, err, c.want)
			}
		})
	}
	m := newMachine(t, nil, rtx4090)
	if p, err := pass(m, fakeRoot(t, 1), []string{"GPU-none"}, DefaultCapabilities); err == nil {
		t.Errorf("a card that is not there: %+v", p)
	}
	if _, err := pass(m, filepath.Join(t.TempDir(), "none"), []string{m.uuid(0)}, DefaultCapabilities); err == nil || errors.Is(err, fs.ErrExist) {
		t.Errorf("no driver: %v", err)
	}
	m.InitFunc = func() nvml.Return { return nvml.ERROR_DRIVER_NOT_LOADED }
	if _, err := pass(m, fakeRoot(t, 1), []string{m.uuid(0)}, DefaultCapabilities); err == nil {
		t.Error("passed a card without a driver")
	}
}

func TestSeal(t *testing.T) {
	drivers := []string{"535.129.03", "580.65.06", "580.159.04"}
	cards := []GPU{
		{UUID: "GPU-a", Driver: "580.159.04"},
		{UUID: "GPU-b", Driver: "580.1"},
		{UUID: "MIG-c", Parent: "GPU-x", Driver: "580.159.04"},
		{UUID: "GPU-d", Driver: "580.159.04"},
		{UUID: "GPU-e", Driver: "1", Trouble: Trouble{Kind: KindHeat}},
		{UUID: "FAKE", Driver: "fake", Fake: true},
		{UUID: "GPU-f", Driver: "999.1"},
	}
	got := Seal(cards, drivers, func(uuid string) error {
		if uuid == "GPU-d" {
			return errors.New("libcuda.so was not found")
		}
		return nil
	})
	for i, want := range []string{"", "driver 580.1 into a container; it knows 580.65.06, 580.159.04", "MIG", "libcuda.so was not found", "", "", "knows 535.129.03, 580"} {
		tr := got[i].Trouble
		if want == "" && tr.Kind == KindDevices || want != "" && (tr.Kind != KindDevices || tr.Ends || !strings.Contains(tr.Text, want)) {
			t.Errorf("%s: %+v, want %q", got[i].UUID, tr, want)
		}
	}
	if got[4].Trouble.Kind != KindHeat || cards[1].Trouble.Kind != "" {
		t.Error("changed what was there")
	}
}
