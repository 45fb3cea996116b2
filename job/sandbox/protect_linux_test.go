package sandbox

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ourFlags are all that runsc may be given by us, with what their values begin
// with in a container's folder. Whatever is not here is gVisor's default, which
// keeps its protections: no host sockets or pipes, no raw sockets, its own
// system call filters, its own overlay.
func ourFlags(dir string) map[string]string {
	return map[string]string{
		"root":                     filepath.Join(dir, dirRunsc),
		"log":                      filepath.Join(dir, fileError),
		"log-format":               "json",
		"network":                  "none",
		"host-settings":            "ignore",
		"control-rpc-stop-timeout": "0",
		"ignore-cgroups":           "",
		"overlay2":                 "root:dir=" + filepath.Join(dir, dirUpper) + ",size=",
		"rootless":                 "",
		"bundle":                   filepath.Join(dir, dirBundle),
		"pid-file":                 filepath.Join(dir, filePid),
	}
}

// flagsOf are the flags of a runsc command up to its first word, and after it.
func flagsOf(args []string) map[string]string {
	flags := map[string]string{}
	for _, a := range args {
		if name, ok := strings.CutPrefix(a, "--"); ok {
			name, value, _ := strings.Cut(name, "=")
			flags[name] = value
		}
	}
	return flags
}

// TestProtectionsAreKept holds the flags that runsc is given, and what is in
// force in the processes of a container that runs, against what must be.
func TestProtectionsAreKept(t *testing.T) {
	e := newEnv(t)
	s := e.spec("deaf")
	e.start(s)
	e.until(s.ID, "ready")
	dir := filepath.Join(e.r.jobs, s.ID)
	p, err := readPlan(dir)
	must(t, err)
	given := flagsOf((&shim{dir: dir, plan: p}).runscArgs())
	ours := ourFlags(dir)
	for name, value := range given {
		if want, ok := ours[name]; !ok || !strings.HasPrefix(value, want) {
			t.Errorf("runsc is given --%s=%s", name, value)
		}
	}
	if given["network"] != "none" || !strings.HasPrefix(given["overlay2"], ours["overlay2"]) || given["overlay2"] == "" {
		t.Errorf("network %q, overlay %q", given["network"], given["overlay2"])
	}
	e.lockedIn(dir)
	e.specIsClosed(dir)
}

// lockedIn looks at the processes themselves: their flags and their filters.
func (e *env) lockedIn(dir string) {
	t := e.t
	seen := map[string]bool{}
	for _, pid := range processesOf(dir) {
		line, err := os.ReadFile(procFile(pid, "cmdline"))
		must(t, err)
		args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
		kind := filepath.Base(args[0])
		seen[kind] = true
		for name, value := range flagsOf(args) {
			bad := strings.HasPrefix(name, "TESTONLY") || strings.HasPrefix(name, "allow-") || strings.HasPrefix(name, "host-uds") || strings.HasPrefix(name, "host-fifo") ||
				name == "net-raw" && value != "false" || name == "network" && value != "none" || name == "overlay2" && !strings.HasPrefix(value, ourFlags(dir)["overlay2"]) ||
				name == "profile" || name == "debug" && value != "false"
			if bad {
				t.Errorf("%s runs with --%s=%s", kind, name, value)
			}
		}
		if kind != "runsc-sandbox" && kind != "runsc-gofer" {
			continue
		}
		status, err := os.ReadFile(procFile(pid, "status"))
		must(t, err)
		for _, want := range []string{"Seccomp:\t2", "NoNewPrivs:\t1"} {
			if !strings.Contains(string(status), want) {
				t.Errorf("%s has no %q:\n%s", kind, want, status)
			}
		}
		for _, ns := range []string{"net", "mnt", "ipc", "pid"} {
			own, _ := os.Readlink("/proc/self/ns/" + ns)
			theirs, err := os.Readlink(procFile(pid, "ns/"+ns))
			if err != nil && !e.r.user {
				t.Errorf("the %s namespace of %s: %v", ns, kind, err)
			}
			if err == nil && theirs == own {
				t.Errorf("%s is in the host's %s namespace", kind, ns)
			}
		}
		if _, err := os.Stat(procFile(pid, "root"+e.image)); err == nil {
			t.Errorf("%s sees the host's files", kind)
		}
	}
	if !seen["runsc-sandbox"] || !seen["runsc-gofer"] {
		t.Errorf("processes %v", seen)
	}
}

func procFile(pid int, name string) string { return filepath.Join("/proc", strconv.Itoa(pid), name) }

// specIsClosed holds the OCI spec against what it must not ask for.
func (e *env) specIsClosed(dir string) {
	t := e.t
	data, err := os.ReadFile(filepath.Join(dir, dirBundle, "config.json"))
	must(t, err)
	var spec specs.Spec
	must(t, json.Unmarshal(data, &spec))
	if len(spec.Annotations) > 0 || spec.Hooks != nil || !spec.Process.NoNewPrivileges {
		t.Errorf("annotations %v, hooks %v, no new privileges %v", spec.Annotations, spec.Hooks, spec.Process.NoNewPrivileges)
	}
	for _, m := range spec.Mounts {
		if m.Type == "bind" {
			t.Errorf("a mount that nobody asked for: %+v", m)
		}
	}
	kinds := map[specs.LinuxNamespaceType]bool{}
	for _, ns := range spec.Linux.Namespaces {
		kinds[ns.Type] = true
		if ns.Path != "" {
			t.Errorf("it joins a namespace: %+v", ns)
		}
	}
	if !kinds[specs.NetworkNamespace] || !kinds[specs.PIDNamespace] || !kinds[specs.MountNamespace] || len(spec.Linux.Devices) > 0 {
		t.Errorf("namespaces %v, devices %v", kinds, spec.Linux.Devices)
	}
	granted := strings.Join(append(append([]string{}, spec.Process.Capabilities.Bounding...), spec.Process.Capabilities.Effective...), " ")
	for _, c := range []string{"SYS_", "NET_RAW", "NET_ADMIN", "MKNOD", "SETFCAP", "SETPCAP", "BPF", "PERFMON", "AUDIT", "MAC_", "SYSLOG"} {
		if strings.Contains(granted, "CAP_"+c) {
			t.Errorf("it has CAP_%s", c)
		}
	}
}
