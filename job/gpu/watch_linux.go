//go:build linux && cgo

package gpu

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// Watch looks at the machine's cards again and again until ctx ends, and tells
// what is known of all of them: first at once, then whenever what the market
// acts on has changed, and always with the newest measurements to seen, which
// may be nil. Critical errors are told as the driver reports them. It returns
// ErrNoDriver when there is none, and nil when ctx ends.
func Watch(ctx context.Context, o WatchOptions, changed, seen func([]GPU)) error {
	return watch(ctx, nvml.New(), o, changed, seen)
}

// eventWait is how long one wait for an error lasts, in milliseconds: ctx is
// looked at between two.
const eventWait = 1000

// critical is an error of a card as the driver reported it.
type critical struct {
	uuid string
	xid  xid
}

type watcher struct {
	lib      nvml.Interface
	o        WatchOptions
	observer *observer
	told     []GPU
	events   chan critical
	renew    chan []string // the cards to wait for errors of
	failed   chan struct{} // the wait for errors ended by itself
	waited   []string
}

func watch(ctx context.Context, lib nvml.Interface, o WatchOptions, tell, seen func([]GPU)) error {
	if ret := lib.Init(); ret != nvml.SUCCESS {
		return initError(ret)
	}
	defer func() { _ = lib.Shutdown() }()
	if o.Ticks == nil {
		t := time.NewTicker(DefaultEvery)
		defer t.Stop()
		o.Ticks = t.C
	}
	w := &watcher{lib: lib, o: o, observer: newObserver(), events: make(chan critical), renew: make(chan []string, 1), failed: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(ctx)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer cancel()
	waiting.Go(func() { w.await(ctx) })
	first := true
	for {
		cards := w.look()
		if seen != nil {
			seen(cards)
		}
		if first || changed(w.told, cards) {
			w.told, first = cards, false
			tell(cards)
		}
		if !w.rest(ctx) {
			return nil
		}
	}
}

// rest waits for the next reason to look; false when ctx ended.
func (w *watcher) rest(ctx context.Context) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-w.o.Ticks:
			return true
		case e := <-w.events:
			w.o.Log.Warn("a card reported an error", "gpu", e.uuid, "what", e.xid.String())
			w.observer.note(e.uuid, e.xid, w.o.Now())
			return true
		case <-w.failed:
			w.waited = nil // the next look waits for errors again
		}
	}
}

// look reads all cards and keeps the wait for errors on those that are there.
func (w *watcher) look() []GPU {
	looked, err := look(w.lib, w.o.Ours)
	if err != nil {
		w.o.Log.Debug("look at the cards", "err", err)
	}
	cards := w.observer.see(looked, w.o.Now())
	var there []string
	for _, g := range looked {
		if g.Parent == "" && !g.Trouble.Ends {
			there = append(there, g.UUID)
		}
	}
	if !slices.Equal(there, w.waited) {
		w.waited = there
		select {
		case <-w.renew: // one that was not taken up yet
		default:
		}
		w.renew <- there
	}
	return cards
}

// await waits for errors of the cards there are, until ctx ends.
func (w *watcher) await(ctx context.Context) {
	for {
		var uuids []string
		select {
		case <-ctx.Done():
			return
		case uuids = <-w.renew:
		}
		if len(uuids) == 0 {
			continue
		}
		if err := w.wait(ctx, uuids); err != nil {
			w.o.Log.Warn("errors of the cards are not reported until the next look", "err", err)
			select {
			case w.failed <- struct{}{}:
			default:
			}
		}
	}
}

// wait waits for errors of cards until others are to be waited for.
func (w *watcher) wait(ctx context.Context, uuids []string) error {
	set, ret := w.lib.EventSetCreate()
	if ret != nvml.SUCCESS {
		return fmt.Errorf("make a set of events: %w", ret)
	}
	defer func() { _ = set.Free() }()
	registered := 0
	for _, uuid := range uuids {
		d, ret := w.lib.DeviceGetHandleByUUID(uuid)
		if ret == nvml.SUCCESS {
			ret = d.RegisterEvents(nvml.EventTypeXidCriticalError|nvml.EventTypeDoubleBitEccError, set)
		}
		if ret == nvml.ERROR_NOT_SUPPORTED { // a card without ECC
			ret = d.RegisterEvents(nvml.EventTypeXidCriticalError, set)
		}
		if ret != nvml.SUCCESS {
			w.o.Log.Warn("this card does not report errors", "gpu", uuid, "err", ret)
			continue
		}
		registered++
	}
	if registered == 0 {
		return nil
	}
	for ctx.Err() == nil && len(w.renew) == 0 {
		data, ret := set.Wait(eventWait)
		if ret == nvml.ERROR_TIMEOUT {
			continue
		}
		if ret != nvml.SUCCESS {
			return fmt.Errorf("wait for events: %w", ret)
		}
		e, ok := criticalOf(data)
		if !ok {
			continue
		}
		select {
		case w.events <- e:
		case <-ctx.Done():
		}
	}
	return nil
}

// doubleBit is the error's number that an event without one stands for.
const doubleBit xid = 48

func criticalOf(data nvml.EventData) (critical, bool) {
	if data.Device == nil {
		return critical{}, false
	}
	uuid, ret := data.Device.GetUUID()
	if ret != nvml.SUCCESS {
		return critical{}, false
	}
	switch data.EventType {
	case nvml.EventTypeXidCriticalError:
		return critical{uuid, xid(data.EventData)}, true
	case nvml.EventTypeDoubleBitEccError:
		return critical{uuid, doubleBit}, true
	}
	return critical{}, false
}
