package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/lumbung-net/lumbung/job/gpu"
	"github.com/lumbung-net/lumbung/job/sandbox"
)

// watchCards keeps the market's cards at what the machine's are, until ctx ends.
func (r *providerRole) watchCards(ctx context.Context) error {
	if r.n.cfg.FakeGPU != "" {
		return nil
	}
	err := r.watch(ctx, gpu.WatchOptions{Ours: r.ours, Log: r.n.log, Now: r.n.now}, func(cards []gpu.GPU) {
		cards = r.sealer.seal(ctx, cards, r.n.log)
		r.tellCards(ctx, r.Pool.Cards(), cards)
		r.SetCards(cards)
	}, r.measured.set)
	if err != nil && !errors.Is(err, gpu.ErrNoDriver) && !errors.Is(err, gpu.ErrNotBuilt) {
		r.n.log.Error("the cards are not watched", "err", err)
	}
	return nil
}

// sealer notes which cards cannot be passed into a container.
type sealer struct {
	drivers func(context.Context) ([]string, error) // that the sandbox knows; nil where there is none
	passed  map[string]bool                         // by UUID and driver: what was tried and went well
}

// seal is gpu.Seal with what this machine's sandbox can do. It is not called by
// two at a time.
func (s *sealer) seal(ctx context.Context, cards []gpu.GPU, log *slog.Logger) []gpu.GPU {
	if s.drivers == nil || !slices.ContainsFunc(cards, func(g gpu.GPU) bool { return !g.Fake }) {
		return cards
	}
	drivers, err := s.drivers(ctx)
	if err != nil {
		log.Error("no card can be passed into a container", "err", err)
	}
	driverOf := map[string]string{}
	for _, g := range cards {
		driverOf[g.UUID] = g.Driver
	}
	if s.passed == nil {
		s.passed = map[string]bool{}
	}
	return gpu.Seal(cards, drivers, func(uuid string) error {
		key := uuid + " " + driverOf[uuid]
		if s.passed[key] {
			return nil
		}
		err := gpu.Try(uuid)
		s.passed[key] = err == nil
		return err
	})
}

// tellCards leaves events of cards that have left the offers, or come back.
func (r *providerRole) tellCards(ctx context.Context, before, after []gpu.GPU) {
	was := map[string]gpu.Trouble{}
	for _, g := range before {
		was[g.UUID] = g.Trouble
	}
	for _, g := range after {
		old, known := was[g.UUID]
		switch {
		case g.Trouble.Kind == old.Kind || g.Trouble.Kind == gpu.KindSplit:
		case !g.Trouble.None():
			r.n.log.Warn("a card is not let any more", "gpu", g.UUID, "why", g.Trouble.Text)
			r.n.event(ctx, "gpu_lost", fmt.Sprintf("GPU %s is not let: %s", g.Title(), g.Trouble.Text))
		case known:
			r.n.log.Info("a card is let again", "gpu", g.UUID)
			r.n.event(ctx, "gpu_back", fmt.Sprintf("GPU %s is let again", g.Title()))
		}
	}
}

// ours reports whether a process on a card is of a container of this home: one
// of its ancestors is a supervisor there. One that cannot be seen from here, as
// the node runs in a container of its own, is taken for the lease's.
func (r *providerRole) ours(pid uint32, uuid string) bool {
	found, seen := supervised("/proc", int(pid), r.n.cfg.Home)
	return found || !seen && r.Pool.Leased(uuid)
}

// maxAncestors is more than there are between a program on a card and its
// container's supervisor.
const maxAncestors = 16

// supervised looks through a process and its ancestors for a supervisor of a
// home's containers; seen is false when there is no such process.
func supervised(proc string, pid int, home string) (found, seen bool) {
	for range maxAncestors {
		dir := proc + "/" + strconv.Itoa(pid)
		line, err := os.ReadFile(dir + "/cmdline")
		if err != nil {
			return false, seen
		}
		seen = true
		args := strings.Split(string(line), "\x00")
		if len(args) > 2 && args[1] == sandbox.ShimArg && strings.HasPrefix(args[2], home+"/") {
			return true, true
		}
		if pid = parentOf(dir); pid <= 1 {
			return false, true
		}
	}
	return false, true
}

// parentOf is the parent of the process of a folder of /proc, or 0.
func parentOf(dir string) int {
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return 0
	}
	// The name in it, in brackets, may hold anything.
	_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		return 0
	}
	ppid, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0
	}
	return ppid
}
