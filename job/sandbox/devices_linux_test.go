package sandbox

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestDevicesInBundle looks at what gVisor is told of a card.
func TestDevicesInBundle(t *testing.T) {
	r := newEnv(t).r
	rootfs := t.TempDir()
	for _, dir := range []string{"usr/lib64", "etc"} {
		if err := os.MkdirAll(filepath.Join(rootfs, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The image's library folder is a link, and holds an old library's name.
	for link, target := range map[string]string{"usr/lib": "lib64", "usr/lib64/libcuda.so.1": "libcuda.so.470"} {
		if err := os.Symlink(target, filepath.Join(rootfs, link)); err != nil {
			t.Fatal(err)
		}
	}
	library := filepath.Join(t.TempDir(), "libcuda.so.580")
	if err := os.WriteFile(library, []byte("of the driver"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := Spec{ID: "card", Rootfs: rootfs, Args: []string{"/p"}, Devices: oneCard()}
	s.Devices.Files[0].Source = library
	if err := r.Prepare(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(r.jobs, s.ID)
	raw, err := os.ReadFile(filepath.Join(dir, dirBundle, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var oci specs.Spec
	if err := json.Unmarshal(raw, &oci); err != nil {
		t.Fatal(err)
	}
	var nodes []string
	for _, d := range oci.Linux.Devices {
		nodes = append(nodes, d.Path)
		if d.Type != "c" || d.Path == "/dev/nvidiactl" && (d.Major != 195 || d.Minor != 255) || d.FileMode == nil || *d.FileMode != 0o666 {
			t.Errorf("device %+v", d)
		}
	}
	if want := []string{"/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidiactl"}; !slices.Equal(nodes, want) {
		t.Errorf("devices %q, want %q", nodes, want)
	}
	i := slices.IndexFunc(oci.Mounts, func(m specs.Mount) bool { return m.Destination == "/usr/lib/libcuda.so.580" })
	if i < 0 || oci.Mounts[i].Source != library || !slices.Contains(oci.Mounts[i].Options, "ro") {
		t.Errorf("mounts %+v", oci.Mounts)
	}
	// What is found inside is the card's, at the place that the image's link
	// leads to.
	if target, err := os.Readlink(filepath.Join(dir, dirSkel, "usr/lib64/libcuda.so.1")); err != nil || target != "libcuda.so.580" {
		t.Errorf("link to %q, %v", target, err)
	}
	if info, err := os.Stat(filepath.Join(dir, dirSkel, "usr/lib64/libcuda.so.580")); err != nil || !info.Mode().IsRegular() {
		t.Errorf("no mount point for the library: %v", err)
	}
	sh := &shim{dir: dir, plan: plan{Spec: s}}
	args := sh.runscArgs()
	if !slices.Contains(args, "--nvproxy") || !slices.Contains(args, "--nvproxy-allowed-driver-capabilities=compute,utility") {
		t.Errorf("runsc is called with %q", args)
	}
	sh.plan.Spec.Devices = Devices{}
	if line := strings.Join(sh.runscArgs(), " "); strings.Contains(line, "nvproxy") {
		t.Errorf("without a card runsc is called with %q", line)
	}
}

// TestDrivers holds that the drivers named in the documents are known to the
// runtime.
func TestDrivers(t *testing.T) {
	got, err := newEnv(t).r.Drivers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(got, "580.159.04") {
		t.Errorf("580.159.04 is not among %q", got)
	}
}

// TestDevicesWithoutDriver starts a container with a card on a machine that has
// none: it fails as the sandbox's own, and says why.
func TestDevicesWithoutDriver(t *testing.T) {
	if _, err := os.Stat("/dev/nvidiactl"); err == nil {
		t.Skip("this machine has an NVIDIA driver")
	}
	e := newEnv(t)
	s := e.spec("exit", "0")
	s.Devices = oneCard()
	s.Devices.Files = nil
	if err := e.r.Prepare(ctxOf(t), s); err != nil {
		t.Fatal(err)
	}
	_, err := e.r.Start(ctxOf(t), s.ID, nil)
	x, waitErr := e.r.Wait(ctxOf(t), s.ID)
	if waitErr != nil || x.Source != SourceSandbox || x.Code != CodeSandbox || !strings.Contains(x.Reason, "nvidiactl") {
		t.Errorf("started with %v, ended with %+v, %v", err, x, waitErr)
	}
}
