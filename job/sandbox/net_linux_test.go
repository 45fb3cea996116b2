package sandbox

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// envWorld makes TestInWorld run: it holds the path of the world's resolv.conf.
const envWorld = "SANDBOX_TEST_WORLD"

// TestNetwork runs TestInWorld on the machine of a world, as root and as an
// ordinary user, and then looks at what was reached.
func TestNetwork(t *testing.T) {
	if testing.Short() {
		t.Skip("skips the tests of containers' networks, which take half a minute: run without -short")
	}
	w := newWorld(t)
	runsc := findRunsc(t)
	program, err := jobProgram()
	must(t, err)
	self, err := os.Executable()
	must(t, err)
	for _, uid := range []uint32{0, ordinary} {
		t.Run(fmt.Sprintf("user %d", uid), func(t *testing.T) {
			dir, err := os.MkdirTemp("", "sandbox-net-") //nolint:usetesting // t.TempDir's parents may be closed to others
			must(t, err)
			t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
			must(t, os.Chmod(dir, 0o755)) //nolint:gosec // another user reads it
			must(t, os.WriteFile(filepath.Join(dir, "job"), program, 0o755))
			copyFile(t, self, filepath.Join(dir, "test"))
			copyFile(t, w.resolv, filepath.Join(dir, "resolv.conf"))
			env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "SANDBOX_TEST_JOB=" + filepath.Join(dir, "job"), envWorld + "=" + filepath.Join(dir, "resolv.conf")}
			if runsc != "" {
				copyFile(t, runsc, filepath.Join(dir, "runsc"))
				env = append(env, EnvRunsc+"="+filepath.Join(dir, "runsc"))
			}
			must(t, os.Chown(dir, int(uid), int(uid)))
			cmd := exec.CommandContext(ctxOfLong(t), filepath.Join(dir, "test"), "-test.v", "-test.timeout=30m", "-test.run=^TestInWorld$")
			cmd.Env, cmd.Dir = env, dir
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{}}}
			var out []byte
			w.machine.do(func() { out, err = cmd.CombinedOutput() })
			if err != nil {
				t.Fatalf("as user %d: %v\n%s", uid, err, out)
			}
			t.Logf("as user %d:\n%s", uid, out)
		})
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for what, n := range w.hits {
		t.Log("reached", what, n)
		switch {
		case strings.Contains(what, " "+worldPublic) || strings.Contains(what, " "+worldPublic6):
		case what == "udp 192.168.77.1" || what == "tcp 192.168.77.1 53": // the resolver, asked by the network
		default:
			t.Errorf("%s was reached", what)
		}
	}
	for _, what := range []string{"tcp " + worldPublic + " 25", "udp 169.254.169.254"} {
		if w.hits[what] != 0 {
			t.Errorf("%s was reached", what)
		}
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, data, 0o755))
}

// TestInWorld runs where TestNetwork says that it is.
func TestInWorld(t *testing.T) {
	if os.Getenv(envWorld) == "" {
		t.Skip("TestNetwork runs it, in a network namespace")
	}
	e := newEnv(t)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *env)
	}{
		{"reaches the internet", testReach},
		{"reaches nothing else", testUnreached},
		{"none by default", testNoNetwork},
		{"limit", testNetLimit},
		{"resolv.conf", testResolvConf},
		{"supervisor killed", testNetShimKilled},
		{"network killed", testNetKilled},
		{"node killed", testNetNodeKilled},
		{"doctor", testNetCheck},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer func(whole testing.TB) { e.t = whole }(e.t)
			e.t = t
			c.run(t, e)
		})
	}
}

func outboundSpec(e *env, steps ...string) Spec {
	s := e.spec(steps...)
	s.Outbound = true
	return s
}

func testReach(t *testing.T, e *env) {
	s := outboundSpec(
		e, "tcp", net.JoinHostPort(worldPublic, portEcho), "hello", ";",
		"tcp", net.JoinHostPort(worldPublic6, portEcho), "hello six", ";",
		"tcp", "public.example.com:"+portEcho, "by name", ";",
		"udp", net.JoinHostPort(worldPublic, portEcho), "datagram", ";",
		"udp", net.JoinHostPort(worldPublic6, portEcho), strings.Repeat("x", 20_000), ";",
		"lookup", "public.example.com", ";", "text", "long.example.com", ";", "lookup", "missing.example.com", ";",
		"load", net.JoinHostPort(worldPublic, portZeros), "50000000", ";",
		"dials", net.JoinHostPort(worldPublic, portEcho), "60", ";", "interfaces",
	)
	s.OpenFiles = 256
	x, out := e.run(s)
	if x.Code != 0 || x.Exceeded != nil {
		t.Errorf("%+v", x)
	}
	for _, want := range []string{
		`tcp 93.184.216.34:7000: "HELLO" <nil>`, `tcp [2a01:4f8::34]:7000: "HELLO SIX" <nil>`, `tcp public.example.com:7000: "BY NAME" <nil>`,
		`udp 93.184.216.34:7000: "DATAGRAM" <nil>`, `udp [2a01:4f8::34]:7000: "` + strings.Repeat("X", 20_000) + `" <nil>`,
		"lookup public.example.com: 93.184.216.34 2a01:4f8::34 <nil>", "text long.example.com: 4000 <nil>",
		"lookup missing.example.com: ", "no such host", "load 93.184.216.34:7001: 50000000 <nil>", "many 60\n", "10.89.0.2/24",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("missing %.100q in\n%.4000s", want, out)
		}
	}
	// All of it was counted, and little more.
	if u := x.Usage; u.NetDown < 50_000_000 || u.NetDown > 60_000_000 || u.NetUp < 20_000 || u.NetUp > 1_000_000 {
		t.Errorf("%+v", u)
	}
	must(t, e.r.Remove(ctxOf(t), s.ID))
	e.nothingLeft()
}

func testUnreached(t *testing.T, e *env) {
	var steps []string
	add := func(s ...string) { steps = append(append(steps, s...), ";") }
	own := []string{"192.168.77.2", "45.60.70.2", "2a0b:1234::2", "10.89.0.1", "fd6c:756d:6275:6e67::1"}
	for _, a := range append(append([]string{}, worldAddrs...), own...) {
		add("tcp", net.JoinHostPort(a, portEcho), "x")
		add("udp", net.JoinHostPort(a, portEcho), "x")
	}
	add("tcp", net.JoinHostPort("::ffff:192.168.77.1", portEcho), "x")
	add("tcp", net.JoinHostPort("127.0.0.1", portEcho), "x")
	add("tcp", net.JoinHostPort("192.168.77.1", "53"), "x")
	add("tcp", "inside.example.com:"+portEcho, "x")
	add("tcp", net.JoinHostPort(worldPublic, "25"), "x")
	tries := len(strings.Split(strings.Join(steps, " "), ";")) - 1
	add("tcp", "router.lan:"+portEcho, "x")
	steps = append(steps, "tcp", net.JoinHostPort(worldPublic, "7009"), "x") // where nobody listens
	x, out := e.run(outboundSpec(e, steps...))
	if x.Code != 0 {
		t.Fatalf("%+v %s", x, out)
	}
	if n := strings.Count(out, `: "" `); n != tries+2 {
		t.Errorf("%d tries failed, want %d:\n%s", n, tries+2, out)
	}
	if n := strings.Count(out, "refused"); n != tries+1 {
		t.Errorf("%d tries were refused, want %d:\n%s", n, tries+1, out)
	}
	if !strings.Contains(out, "lookup router.lan") {
		t.Error(out)
	}
}

func testNoNetwork(t *testing.T, e *env) {
	s := e.spec("interfaces", ";", "tcp", net.JoinHostPort(worldPublic, portEcho), "x", ";", "lookup", "public.example.com", ";", "cat", "/etc/resolv.conf")
	x, out := e.run(s)
	if x.Code != 0 || !strings.Contains(out, "interfaces [127.0.0.1/8 ::1/128]") || !strings.Contains(out, "network is unreachable") || !strings.Contains(out, "open /etc/resolv.conf: no such file") || strings.Contains(out, worldPublic6) {
		t.Errorf("%+v %s", x, out)
	}
	if x.Usage.NetUp+x.Usage.NetDown != 0 {
		t.Errorf("%+v", x.Usage)
	}
}

func testNetLimit(t *testing.T, e *env) {
	s := outboundSpec(
		e, "load", net.JoinHostPort(worldPublic, portZeros), "50000000", ";", "tcp", net.JoinHostPort(worldPublic, portEcho), "x", ";",
		"udp", net.JoinHostPort(worldPublic, portEcho), "x", ";", "lookup", "public.example.com", ";", "exit", "4",
	)
	s.NetBytes = 1 << 20
	x, out := e.run(s)
	if x.Code != 4 || x.Source != SourceJob || x.Exceeded == nil || x.Exceeded.Limit != LimitNet || x.Exceeded.Killed || x.Exceeded.Max != s.NetBytes ||
		x.Exceeded.Seen <= s.NetBytes || x.Exceeded.Seen > s.NetBytes+1<<20 {
		t.Errorf("%+v %+v", x, x.Exceeded)
	}
	if used := x.Usage.NetUp + x.Usage.NetDown; used <= s.NetBytes || used > s.NetBytes+1<<20 {
		t.Errorf("%+v", x.Usage)
	}
	if strings.Count(out, "reset by peer") != 1 || strings.Count(out, "refused") != 3 || strings.Contains(out, "load 93.184.216.34:7001: 50000000") || strings.Contains(out, worldPublic6) {
		t.Error(out)
	}
	if text := x.Exceeded.String(); !strings.HasPrefix(text, "net limit 1 MiB reached at ") {
		t.Error(text)
	}
}

// testResolvConf: an image's own is neither used nor changed, be it a file or a
// link into the system it came from.
func testResolvConf(t *testing.T, e *env) {
	image := e.image
	defer func() { e.image = image }()
	for _, kind := range []string{"file", "link"} {
		e.image = filepath.Join(e.base, kind)
		must(t, os.MkdirAll(filepath.Join(e.image, "etc"), 0o755))
		program, err := jobProgram()
		must(t, err)
		must(t, os.WriteFile(filepath.Join(e.image, "job"), program, 0o755))
		name := filepath.Join(e.image, "etc/resolv.conf")
		if kind == "file" {
			must(t, os.WriteFile(name, []byte("nameserver 9.9.9.9\n"), 0o644))
		} else {
			must(t, os.Symlink("../run/systemd/resolve/stub-resolv.conf", name))
		}
		before := listing(t, e.image)
		x, out := e.run(outboundSpec(e, "cat", "/etc/resolv.conf", ";", "lookup", "public.example.com"))
		if x.Code != 0 || !strings.Contains(out, "nameserver "+netServer+"\n") || !strings.Contains(out, worldPublic) || strings.Contains(out, "9.9.9.9") {
			t.Errorf("%s: %+v %s", kind, x, out)
		}
		if after := listing(t, e.image); after != before {
			t.Errorf("%s: the image has changed:\n%s\n%s", kind, before, after)
		}
	}
}

// talking starts a container that keeps a connection, and waits until it has one.
func talking(t *testing.T, e *env) (Spec, Handle) {
	t.Helper()
	s := outboundSpec(e, "steady", net.JoinHostPort(worldPublic, portSteady), "/in")
	s.Mounts = []Mount{{Source: t.TempDir(), Dest: "/in", ReadOnly: true}}
	h := e.start(s)
	e.until(s.ID, "steady line 0")
	return s, h
}

func testNetShimKilled(t *testing.T, e *env) {
	s, h := talking(t, e)
	must(t, unix.Kill(h.Shim, unix.SIGKILL))
	x := e.wait(s.ID)
	if x.Code != CodeSandbox || x.Source != SourceSandbox {
		t.Errorf("%+v", x)
	}
	must(t, e.r.Remove(ctxOf(t), s.ID))
	if left := networksOf(t, e); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// networksOf lists the processes that are containers' networks.
func networksOf(t *testing.T, e *env) (pids []int) {
	t.Helper()
	for _, p := range processesWith(e.base) {
		var pid int
		if _, err := fmt.Sscan(p, &pid); err == nil && strings.Contains(p, " "+netArg+" ") {
			pids = append(pids, pid)
		}
	}
	return pids
}

func testNetKilled(t *testing.T, e *env) {
	s, _ := talking(t, e)
	pids := networksOf(t, e)
	if len(pids) != 1 {
		t.Fatalf("networks: %v", pids)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pids[0]))
	must(t, err)
	for _, want := range []string{"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Uid:\t65534\t65534"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("missing %q in %s", want, status)
		}
	}
	must(t, unix.Kill(pids[0], unix.SIGKILL))
	x := e.wait(s.ID)
	if x.Code != CodeSandbox || x.Source != SourceSandbox || !strings.Contains(x.Reason, "network failed") {
		t.Errorf("%+v", x)
	}
	if left := networksOf(t, e); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// testNetNodeKilled: a container keeps its connection when its node is killed
// and another one finds it.
func testNetNodeKilled(t *testing.T, e *env) {
	id := fmt.Sprintf("c%d", e.n+1)
	e.killedNode(t, id, "steady", net.JoinHostPort(worldPublic, portSteady), "/job-signs")
	found, err := e.r.Recover(ctxOf(t))
	must(t, err)
	running := false
	for _, f := range found {
		running = running || f.ID == id && f.Running
	}
	if !running {
		t.Fatalf("%+v", found)
	}
	e.until(id, "steady line 0")
	code, err := e.r.Exec(ctxOf(t), id, ExecSpec{Args: []string{"/job", "mkdir", "/job-signs", "700"}})
	if err != nil || code != 0 {
		t.Fatalf("%d %v", code, err)
	}
	sign := func(i int) (int, error) {
		return e.r.Exec(ctxOf(t), id, ExecSpec{Args: []string{"/job", "mustwrite", fmt.Sprintf("/job-signs/%d", i), "x"}})
	}
	for i := range 2 {
		if code, err := sign(i); err != nil || code != 0 {
			t.Fatalf("%d %v", code, err)
		}
		e.until(id, fmt.Sprintf("steady line %d", i+1))
	}
	_, _ = sign(2) // ends the program, and it may be ended with that
	if x := e.wait(id); x.Code != 0 || x.Usage.NetUp == 0 {
		t.Errorf("%+v %s", x, e.output(id))
	}
}

func testNetCheck(t *testing.T, e *env) {
	for _, f := range e.r.Check(ctxOf(t)) {
		if f.Name == "network" && (!f.OK || !strings.Contains(f.How, "network of its own")) {
			t.Errorf("%+v", f)
		}
	}
	if err := e.r.CanOutbound(ctxOf(t)); err != nil {
		t.Error(err)
	}
}

// TestNetLimitText: the figure of this limit is in bytes too.
func TestNetLimitText(t *testing.T) {
	x := Exceeded{Limit: LimitNet, Max: 10 << 30, Seen: 11 << 30, At: time.Unix(0, 0)}
	if got := x.String(); got != "net limit 10 GiB reached at 00:00:00 UTC (seen 11 GiB)" {
		t.Error(got)
	}
}
