//go:build linux && cgo

package gpu

import (
	"debug/elf"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi"
	"golang.org/x/sys/unix"
	cdi "tags.cncf.io/container-device-interface/specs-go"
)

// Pass makes what lets a container use cards of this machine, given their UUIDs
// and the parts of the driver wanted. The driver's files are found as the
// Container Device Interface does.
func Pass(uuids, capabilities []string) (Passage, error) {
	return pass(nvml.New(), "/", uuids, capabilities)
}

// silent is a log for nvcdi, which tells of every file that a driver lacks.
type silent struct{}

func (silent) Debugf(string, ...any)   {}
func (silent) Errorf(string, ...any)   {}
func (silent) Infof(string, ...any)    {}
func (silent) Warningf(string, ...any) {}
func (silent) Tracef(string, ...any)   {}

// pass is Pass with another library and another root of the driver.
func pass(lib nvml.Interface, root string, uuids, capabilities []string) (Passage, error) {
	gen, err := nvcdi.New(
		nvcdi.WithNvmlLib(lib), nvcdi.WithDriverRoot(root), nvcdi.WithMode(nvcdi.ModeNvml), nvcdi.WithLogger(silent{}),
		nvcdi.WithFeatureFlags(nvcdi.FeatureDisableNvsandboxUtils, nvcdi.FeatureDisableIPCDiscoverer),
		nvcdi.WithNVIDIACDIHookPath("nvidia-cdi-hook"), // never run: see hook
	)
	if err != nil {
		return Passage{}, fmt.Errorf("look for the NVIDIA driver's files: %w", err)
	}
	if ret := lib.Init(); ret != nvml.SUCCESS {
		return Passage{}, initError(ret)
	}
	defer func() { _ = lib.Shutdown() }()
	common, err := gen.GetCommonEdits()
	if err != nil {
		return Passage{}, fmt.Errorf("look for the NVIDIA driver's files: %w", err)
	}
	b := builder{root: root, capabilities: capabilities}
	if common.ContainerEdits != nil {
		b.add(common.ContainerEdits)
	}
	devices, err := gen.GetDeviceSpecsByID(uuids...)
	if err != nil {
		return Passage{}, fmt.Errorf("look for the devices of %s: %w", strings.Join(uuids, ", "), err)
	}
	if len(devices) != len(uuids) {
		return Passage{}, fmt.Errorf("%d devices for %d cards", len(devices), len(uuids))
	}
	for _, d := range devices {
		b.add(&d.ContainerEdits)
	}
	return b.finish(uuids)
}

// builder makes a passage of the edits that CDI would have a runtime do.
type builder struct {
	root         string
	capabilities []string
	p            Passage
	errs         []error
}

func (b *builder) add(e *cdi.ContainerEdits) {
	for _, n := range e.DeviceNodes {
		b.node(n)
	}
	for _, m := range e.Mounts {
		b.file(m)
	}
	for _, h := range e.Hooks {
		b.hook(h)
	}
}

func (b *builder) node(n *cdi.DeviceNode) {
	if !passable(n.Path) || slices.ContainsFunc(b.p.Nodes, func(o Node) bool { return o.Path == n.Path }) {
		return
	}
	from := n.HostPath
	if from == "" {
		from = n.Path
	}
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		b.errs = append(b.errs, fmt.Errorf("device %s: %w", from, err))
		return
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		b.errs = append(b.errs, fmt.Errorf("%s is no character device", from))
		return
	}
	rdev := uint64(st.Rdev) //nolint:unconvert // 32 bits on some systems
	b.p.Nodes = append(b.p.Nodes, Node{Path: n.Path, Major: int64(unix.Major(rdev)), Minor: int64(unix.Minor(rdev))})
}

func (b *builder) file(m *cdi.Mount) {
	if !wanted(m.ContainerPath, b.capabilities) || slices.ContainsFunc(b.p.Files, func(o File) bool { return o.Dest == m.ContainerPath }) {
		return
	}
	var st unix.Stat_t
	if err := unix.Stat(m.HostPath, &st); err != nil {
		b.errs = append(b.errs, fmt.Errorf("file of the driver: %s: %w", m.HostPath, err))
		return
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG {
		return // sockets of the driver's services, and the like
	}
	b.p.Files = append(b.p.Files, File{Source: m.HostPath, Dest: m.ContainerPath})
	if soname := sonameOf(m.HostPath); soname != "" && soname != path.Base(m.ContainerPath) {
		b.link(path.Join(path.Dir(m.ContainerPath), soname), path.Base(m.ContainerPath))
	}
}

// sonameOf is the name by which programs look for a library, which is what
// ldconfig would make a link of; empty for what is none.
func sonameOf(file string) string {
	f, err := elf.Open(file)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	names, err := f.DynString(elf.DT_SONAME)
	if err != nil || len(names) != 1 || strings.ContainsRune(names[0], '/') {
		return ""
	}
	return names[0]
}

func (b *builder) link(at, target string) {
	if !slices.ContainsFunc(b.p.Links, func(o Link) bool { return o.Path == at }) {
		b.p.Links = append(b.p.Links, Link{Path: at, Target: target})
	}
}

// hook does with data what a hook would do by running in the container's root,
// which gVisor's are not: links are made before the start, and folders of
// libraries are named in the environment instead of in the linker's cache.
func (b *builder) hook(h *cdi.Hook) {
	args := slices.Clone(h.Args)
	value := func(i int, flag string) (string, bool) {
		if v, ok := strings.CutPrefix(args[i], flag+"="); ok {
			return v, true
		}
		if args[i] == flag && i+1 < len(args) {
			return args[i+1], true
		}
		return "", false
	}
	symlinks, cache := slices.Contains(args, string(nvcdi.CreateSymlinksHook)), slices.Contains(args, string(nvcdi.UpdateLDCacheHook))
	for i := range args {
		if v, ok := value(i, "--link"); ok && symlinks {
			if target, at, ok := strings.Cut(v, "::"); ok && path.IsAbs(at) && wanted(at, b.capabilities) {
				b.link(path.Clean(at), target)
			}
		}
		if v, ok := value(i, "--folder"); ok && cache && path.IsAbs(v) && !slices.Contains(b.p.Folders, v) {
			b.p.Folders = append(b.p.Folders, v)
		}
	}
}

// finish checks that what a program needs at least is there.
func (b *builder) finish(uuids []string) (Passage, error) {
	p := b.p
	p.Capabilities = b.capabilities
	p.Env = []string{
		"NVIDIA_VISIBLE_DEVICES=" + strings.Join(uuids, ","),
		"NVIDIA_DRIVER_CAPABILITIES=" + strings.Join(b.capabilities, ","),
	}
	has := func(name string) bool {
		return slices.ContainsFunc(p.Nodes, func(n Node) bool { return n.Path == name })
	}
	for _, name := range []string{"/dev/nvidiactl", "/dev/nvidia-uvm"} {
		if !has(name) {
			b.errs = append(b.errs, fmt.Errorf("%s is not there: load the driver's modules, as `nvidia-modprobe -u -c 0` does", name))
		}
	}
	if !slices.ContainsFunc(p.Files, func(f File) bool { return strings.HasPrefix(filepath.Base(f.Dest), "libcuda.so") }) {
		b.errs = append(b.errs, errors.New("the driver's libcuda.so was not found"))
	}
	cards := 0
	for _, n := range p.Nodes {
		if !slices.Contains(passed, n.Path) {
			cards++
		}
	}
	if cards != len(uuids) {
		b.errs = append(b.errs, fmt.Errorf("%d device nodes for %d cards", cards, len(uuids)))
	}
	if len(p.Folders) == 0 {
		for _, f := range p.Files {
			if dir := path.Dir(f.Dest); strings.HasPrefix(path.Base(f.Dest), "lib") && !slices.Contains(p.Folders, dir) {
				p.Folders = append(p.Folders, dir)
			}
		}
	}
	if err := errors.Join(b.errs...); err != nil {
		return Passage{}, err
	}
	slices.SortFunc(p.Nodes, func(x, y Node) int { return strings.Compare(x.Path, y.Path) })
	return p, nil
}
