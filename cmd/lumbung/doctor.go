package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/job/gpu"
	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/node"
	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) doctorCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor [--role ROLES]",
		Short: "Check this machine for a role, with a remedy for what is wrong; needs no node",
		Long:  "doctor checks what a node of the role needs of this machine. It exits with 125 when something is missing.",
		Args:  takes(),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.do(func(ctx context.Context, _ []string) error {
			cfg, err := a.nodeConfig(cmd)
			if err != nil {
				return err
			}
			m := a.newMeter("looking around")
			found := a.examine(ctx, cfg)
			m.Done()
			e := endingOf(found)
			doc := struct {
				Findings []client.Finding `json:"findings"`
				ending
			}{found, e}
			if err := a.show(doc, func(w io.Writer) { a.showFindings(w, found) }); err != nil {
				return err
			}
			return e.exit()
		})(cmd, args)
	}
	nodeFlags(cmd, "role", "network", "listen", "fake-gpu", "runtime", "runsc")
	return a.withOutput(cmd)
}

// examine makes all checks that the roles call for.
func (a *app) examine(ctx context.Context, cfg node.Config) []client.Finding {
	found := []client.Finding{a.checkNode(ctx, cfg), checkHome(cfg.Home)}
	running := found[0].Detail != noNodeRuns
	provider := cfg.Has(node.RoleProvider)
	found = append(found, checkDisk(cfg.Home, provider))
	found = append(found, checkPorts(ctx, cfg, running)...)
	found = append(found, checkClock(a.now()))
	if f, ok := checkBuffers(); ok {
		found = append(found, f)
	}
	if !provider {
		return found
	}
	found = append(found, checkGPUs(ctx, cfg)...)
	return append(found, checkSandbox(ctx, cfg)...)
}

const noNodeRuns = "no node runs in this home"

func (a *app) checkNode(ctx context.Context, cfg node.Config) client.Finding {
	f := client.Finding{Level: levelOK, What: "node", Detail: noNodeRuns}
	c, err := client.New(cfg.Home)
	if err != nil {
		return f
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if s, err := c.Status(ctx); err == nil {
		f.Detail = fmt.Sprintf("runs, process %d, %s, roles %s", s.PID, s.Version, strings.Join(s.Roles, ", "))
	} else if !errors.Is(err, client.ErrNoNode) {
		f.Level, f.Detail, f.Remedy = levelWarn, "does not answer: "+err.Error(), "lumbung down, then lumbung up -d"
	}
	return f
}

func checkHome(home string) client.Finding {
	f := client.Finding{Level: levelOK, What: "home", Detail: home + " can be written"}
	err := os.MkdirAll(home, 0o700)
	if err == nil {
		var probe *os.File
		if probe, err = os.CreateTemp(home, ".doctor-*"); err == nil {
			_, err = probe.WriteString("x")
			err = errors.Join(err, probe.Close(), os.Remove(probe.Name()))
		}
	}
	if err != nil {
		f.Level, f.Detail, f.Remedy = levelFail, err.Error(), "choose another folder with --home, or make this one yours"
	}
	return f
}

// Room that a role should have.
const (
	leastDisk    = 1 << 30
	providerDisk = 20 << 30
)

func checkDisk(home string, provider bool) client.Finding {
	f := client.Finding{Level: levelOK, What: "disk"}
	free, err := diskFree(home)
	switch {
	case err != nil:
		f.Level, f.Detail, f.Remedy = levelWarn, "cannot tell what is free: "+err.Error(), "check that "+home+" is on a local disk"
		return f
	case free < leastDisk:
		f.Level, f.Remedy = levelFail, "make room, or choose a --home on a larger disk"
	case provider && free < providerDisk:
		f.Level, f.Remedy = levelWarn, "images and outputs of jobs need room: 20 GB or more is good"
	}
	f.Detail = sizeText(free) + " free at " + home
	return f
}

func checkPorts(ctx context.Context, cfg node.Config, running bool) []client.Finding {
	var out []client.Finding
	for _, listen := range cfg.Listen {
		f := client.Finding{Level: levelOK, What: "port", Detail: listen}
		fixed, err := tryListen(ctx, listen)
		switch {
		case !fixed && err == nil:
			continue
		case err != nil && running && fixed:
			f.Detail += " is in use, by the node that runs here or another program"
		case err != nil:
			f.Level, f.Detail = levelFail, listen+": "+err.Error()
			f.Remedy = "another --listen, or end what uses the port (ss -lntup shows it)"
		default:
			f.Detail += " is free"
		}
		out = append(out, f)
	}
	if len(out) == 0 {
		out = append(out, client.Finding{Level: levelOK, What: "port", Detail: "the system picks one"})
		if cfg.Has(node.RoleBootstrap) {
			out[0].Level, out[0].Remedy = levelWarn, "a bootstrap node needs an address that stays: --listen /ip4/0.0.0.0/tcp/4011"
		}
	}
	return out
}

// tryListen listens on a multiaddr for a moment; fixed says that it names a
// port.
func tryListen(ctx context.Context, listen string) (fixed bool, err error) {
	addr, err := multiaddr.NewMultiaddr(listen)
	if err != nil {
		return false, err
	}
	for _, code := range []int{multiaddr.P_TCP, multiaddr.P_UDP} {
		if port, err := addr.ValueForProtocol(code); err == nil && port != "0" {
			fixed = true
		}
	}
	if !fixed {
		return false, nil
	}
	transport, _ := multiaddr.SplitFunc(addr, func(c multiaddr.Component) bool { return c.Protocol().Code == multiaddr.P_QUIC_V1 })
	network, host, err := manet.DialArgs(transport)
	if err != nil {
		return fixed, err
	}
	var lc net.ListenConfig
	if strings.HasPrefix(network, "udp") {
		c, err := lc.ListenPacket(ctx, network, host)
		if err != nil {
			return fixed, err
		}
		return fixed, c.Close()
	}
	l, err := lc.Listen(ctx, network, host)
	if err != nil {
		return fixed, err
	}
	return fixed, l.Close()
}

// leastTime is a time before which no lumbung was ever built.
var leastTime = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func checkClock(now time.Time) client.Finding {
	f := client.Finding{Level: levelOK, What: "clock", Detail: now.UTC().Format(time.RFC3339)}
	const remedy = "timedatectl set-ntp true, or any other NTP client: signed offers are good for a short time only"
	if now.Before(leastTime) {
		f.Level, f.Detail, f.Remedy = levelFail, f.Detail+" is in the past", remedy
		return f
	}
	synced, known := clockSynced()
	switch {
	case !known:
	case synced:
		f.Detail += ", synchronised"
	default:
		f.Level, f.Remedy = levelWarn, remedy
		f.Detail += ", and the kernel says that nothing keeps it right"
	}
	return f
}

func checkGPUs(ctx context.Context, cfg node.Config) []client.Finding {
	cards, err := gpu.Inventory()
	cards = sealed(ctx, cfg, cards)
	if cfg.FakeGPU != "" {
		cards, err = gpu.Fake(cfg.FakeGPU)
	}
	if err != nil && len(cards) == 0 {
		return []client.Finding{{Level: levelWarn, What: "GPU", Detail: "none can be let, only CPUs: " + err.Error(), Remedy: "install NVIDIA's driver; without a card this is fine"}}
	}
	var out []client.Finding
	for _, g := range cards {
		detail := fmt.Sprintf("%s (%s), %s, %s, driver %s", g.Model, g.Name, g.UUID, sizeText(g.VRAMBytes), g.Driver)
		if g.CUDA != "" {
			detail += ", CUDA " + g.CUDA
		}
		if g.Health.Celsius > 0 {
			detail += fmt.Sprintf(", %d °C", g.Health.Celsius)
		}
		f := client.Finding{Level: levelOK, What: "GPU", Detail: detail}
		if t := g.Trouble; !t.None() {
			f.Level, f.Detail, f.Remedy = levelWarn, detail+": "+t.Text, "it is not let until that is over"
		}
		out = append(out, f)
	}
	if err != nil {
		out = append(out, client.Finding{Level: levelWarn, What: "GPU", Detail: err.Error(), Remedy: "nvidia-smi tells more"})
	}
	if len(out) == 0 {
		out = append(out, client.Finding{Level: levelWarn, What: "GPU", Detail: "the driver answers and lists no card", Remedy: "nvidia-smi tells more; only CPUs are let"})
	}
	return out
}

// sealed notes which cards cannot be passed into a container.
func sealed(ctx context.Context, cfg node.Config, cards []gpu.GPU) []gpu.GPU {
	if len(cards) == 0 {
		return cards
	}
	rt, err := sandbox.New(sandboxOptions(cfg))
	if err != nil {
		return cards // said with the sandbox
	}
	drivers, err := rt.Drivers(ctx)
	if err != nil {
		return cards
	}
	return gpu.Seal(cards, drivers, gpu.Try)
}

func sandboxOptions(cfg node.Config) sandbox.Options {
	return sandbox.Options{
		Dir: filepath.Join(cfg.Home, "sandbox"), RunscPath: cfg.Runsc, OCI: cfg.OCI(), Now: time.Now, Log: slog.New(slog.DiscardHandler),
	}
}

func checkSandbox(ctx context.Context, cfg node.Config) []client.Finding {
	if runtime.GOOS != "linux" {
		return []client.Finding{{Level: levelFail, What: "sandbox", Detail: "containers run on Linux only", Remedy: "provide from a Linux machine; renting works here"}}
	}
	found := sandbox.Check(ctx, sandboxOptions(cfg))
	var out []client.Finding
	for _, s := range found {
		f := client.Finding{Level: levelOK, What: "sandbox " + s.Name, Detail: s.How, Remedy: s.Remedy}
		switch {
		case s.OK && s.Weaker:
			f.Level = levelWarn
		case s.OK:
			f.Remedy = ""
		case s.Name == sandbox.LimitCPU:
			f.Level = levelWarn // held, but coarsely, and not sold
		default:
			f.Level = levelFail
		}
		out = append(out, f)
	}
	return out
}
