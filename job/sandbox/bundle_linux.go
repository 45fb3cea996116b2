package sandbox

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// capabilities of a root user inside; see the package comment.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID",
	"CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID",
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// writeBundle writes the OCI bundle of a container whose root is mounted on
// dir/root.
func writeBundle(dir string, s Spec, id identity, userNS bool) error {
	bundle := filepath.Join(dir, dirBundle)
	if err := os.Mkdir(bundle, 0o700); err != nil {
		return err
	}
	data, err := json.Marshal(ociSpec(dir, s, id, userNS))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600)
}

func ociSpec(dir string, s Spec, id identity, userNS bool) *specs.Spec {
	spec := &specs.Spec{
		Version:  specs.Version,
		Hostname: s.Hostname,
		Root:     &specs.Root{Path: filepath.Join(dir, dirRoot)},
		Process: &specs.Process{
			User:            specs.User{UID: id.uid, GID: id.gid, AdditionalGids: id.groups},
			Args:            s.Args,
			Env:             environment(s, id),
			Cwd:             s.Cwd,
			NoNewPrivileges: true,
			Capabilities:    capsOf(id),
			Rlimits: []specs.POSIXRlimit{
				rlimit("RLIMIT_NOFILE", uint64(s.OpenFiles)), //nolint:gosec // validated positive
				rlimit("RLIMIT_CORE", 0),
				// No file can be larger than what may be written anywhere; a
				// little more, so that a full disk says so.
				rlimit("RLIMIT_FSIZE", max(s.DiskBytes, s.OutputBytes, s.MemoryBytes)+1<<20),
			},
		},
		Mounts: ociMounts(s),
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.NetworkNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
			},
		},
	}
	for _, n := range s.Devices.Nodes {
		all := os.FileMode(0o666)
		spec.Linux.Devices = append(spec.Linux.Devices, specs.LinuxDevice{Path: n.Path, Type: "c", Major: n.Major, Minor: n.Minor, FileMode: &all})
	}
	if s.Secrets {
		spec.Mounts = append(spec.Mounts, secretsMount(dir))
	}
	if s.Arriving != "" {
		spec.Annotations = lazyAnnotations(dir, s)
	}
	if userNS && id.uid != 0 {
		// The shim's namespace maps the node's user to the container's; runsc
		// hands that one id on (see shimAttr).
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		spec.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: id.uid, HostID: id.uid, Size: 1}}
		spec.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: id.gid, HostID: id.gid, Size: 1}}
	}
	return spec
}

// lazyAnnotations make the root be served by our own gofer alone, never
// straight from its folder ("directfs"). With them gVisor wants the overlay to
// be given here too.
func lazyAnnotations(dir string, s Spec) map[string]string {
	const rootfs = "dev.gvisor.spec.rootfs."
	return map[string]string{
		lazyAnnotation:      "1",
		rootfs + "source":   filepath.Join(dir, dirRoot),
		rootfs + "type":     "bind",
		rootfs + "overlay":  "dir=" + filepath.Join(dir, dirUpper),
		rootfs + "options":  fmt.Sprintf("size=%d", s.DiskBytes),
		rootfs + "directfs": "off",
	}
}

func rlimit(kind string, n uint64) specs.POSIXRlimit {
	return specs.POSIXRlimit{Type: kind, Hard: n, Soft: n}
}

// capsOf gives root its few; any other user has none and can gain none.
func capsOf(id identity) *specs.LinuxCapabilities {
	if id.uid != 0 {
		return &specs.LinuxCapabilities{}
	}
	return &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities}
}

func environment(s Spec, id identity) []string {
	env := append([]string(nil), s.Env...)
	has := func(key string) bool {
		for _, e := range s.Env {
			if strings.HasPrefix(e, key+"=") {
				return true
			}
		}
		return false
	}
	if !has("PATH") {
		env = append(env, defaultPath)
	}
	if !has("HOME") {
		env = append(env, "HOME="+id.home)
	}
	if !has("HOSTNAME") {
		env = append(env, "HOSTNAME="+s.Hostname)
	}
	return env
}

// ociMounts: nothing of the host but the job's own mounts. /tmp and /dev/shm
// are memory and count as such; half the limit each, as Linux does for tmpfs.
func ociMounts(s Spec) []specs.Mount {
	half := fmt.Sprintf("size=%d", s.MemoryBytes/2)
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", half}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	}
	tmp := true
	for _, m := range s.Mounts {
		tmp = tmp && m.Dest != "/tmp"
	}
	if tmp {
		mounts = append(mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmp", Options: []string{"nosuid", "nodev", "mode=1777", half}})
	}
	for _, m := range slices.Concat(s.Mounts, s.Devices.Files) {
		options := []string{"rbind", "nosuid", "nodev", "rw"}
		if m.ReadOnly {
			options[3] = "ro"
		}
		mounts = append(mounts, specs.Mount{Destination: m.Dest, Type: "bind", Source: m.Source, Options: options})
	}
	return mounts
}
