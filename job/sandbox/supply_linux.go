package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Supply brings the files that a container with Spec.Arriving waits for, until
// it has ended (then nil) or ctx has. It may be called before Start; a later
// call takes over where an earlier one, of a node that was restarted, ended.
// While nobody supplies, reads of missing files wait.
func (r *Runtime) Supply(ctx context.Context, id string, s Supplier) error {
	dir, err := r.folder(id)
	if err != nil {
		return err
	}
	for {
		err := supply(ctx, dir, s)
		if ctx.Err() != nil {
			return fmt.Errorf("supplying the image of %s: %w", id, context.Cause(ctx))
		}
		if !errors.Is(err, errNoShim) {
			return err
		}
		// It has not been started, or its shim is about to listen, or it is over.
		st, serr := readState(dir)
		if errors.Is(serr, fs.ErrNotExist) || st.Phase == phaseExited {
			return nil
		}
		if _, serr = os.Stat(filepath.Join(dir, fileSpec)); errors.Is(serr, fs.ErrNotExist) {
			return nil // removed
		}
		if st.Phase == phaseRunning {
			if lock, free, lerr := lockShim(dir); lerr == nil && free {
				return lock.Close() // its supervisor was killed
			}
		}
		if err := waitChange(ctx, minLook); err != nil {
			return fmt.Errorf("supplying the image of %s: %w", id, err)
		}
	}
}

// CanArrive says by nil that the runtime can run containers whose image is still
// arriving; else why not. Upstream's runsc cannot: it would show empty files.
func (r *Runtime) CanArrive(ctx context.Context) error {
	return r.can(ctx, lazyFeature, "can start a container before its image is whole")
}

// CanOutbound says by nil that the runtime can give containers a network; else
// why not. Upstream's runsc cannot, without a network namespace made for it.
func (r *Runtime) CanOutbound(ctx context.Context) error {
	return r.can(ctx, netFeature, "can give a container a network")
}

// can asks the runtime for a feature, once for each runtime.
func (r *Runtime) can(ctx context.Context, feature, words string) error {
	runsc, err := r.Ready(ctx)
	if err != nil {
		return err
	}
	switch {
	case r.oci != "" && feature == lazyFeature:
		return errWhole(runsc)
	case r.oci != "":
		return r.onlyGVisor(words)
	}
	list, err := r.features(ctx, runsc)
	if err != nil {
		return fmt.Errorf("%w that %s: %s is another than `make payload` builds: %w", ErrNoRuntime, words, runsc, err)
	}
	if !slices.ContainsFunc(list, func(f []string) bool { return f[0] == feature }) {
		return fmt.Errorf("%w that %s: %s is older than what `make payload` builds", ErrNoRuntime, words, runsc)
	}
	return nil
}

// features are the lines in which our own runsc says what it can do beyond
// upstream's, which fails here. It is asked once.
func (r *Runtime) features(ctx context.Context, runsc string) ([][]string, error) {
	r.unpacking.Lock()
	defer r.unpacking.Unlock()
	if r.asksFor == runsc {
		return r.answers, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, featuresTime, fmt.Errorf("no answer within %s", featuresTime))
	defer cancel()
	out, err := exec.CommandContext(ctx, runsc, "lumbung-features").Output()
	if err != nil {
		return nil, errors.Join(err, context.Cause(ctx))
	}
	var list [][]string
	for line := range strings.Lines(string(out)) {
		if words := strings.Fields(line); len(words) > 0 {
			list = append(list, words)
		}
	}
	r.asksFor, r.answers = runsc, list
	return list, nil
}

const (
	lazyFeature  = "lazy/1" // as runsc/main.go says
	featuresTime = 10 * time.Second
)

// Arriving lists where the images of all containers here arrive that began
// before they were whole.
func (r *Runtime) Arriving() ([]string, error) {
	entries, err := os.ReadDir(r.jobs)
	if err != nil {
		return nil, fmt.Errorf("looking for containers: %w", err)
	}
	var list []string
	for _, e := range entries {
		p, err := readPlan(filepath.Join(r.jobs, e.Name()))
		if err == nil && p.Spec.Arriving != "" {
			list = append(list, p.Spec.Arriving)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return list, nil
}

// errNoShim says that there is nobody to supply.
var errNoShim = errors.New("its supervisor does not listen")

// supply serves one connection to a shim.
func supply(ctx context.Context, dir string, s Supplier) error {
	conn, err := dialShim(ctx, dir, request{Op: "supply"})
	if err != nil {
		return fmt.Errorf("%w: %w", errNoShim, err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var mu sync.Mutex // of writing
	done := func(d lazyDone) {
		mu.Lock()
		defer mu.Unlock()
		if err := json.NewEncoder(conn).Encode(d); err != nil {
			_ = conn.Close()
		}
	}
	if s.Whole != nil {
		wg.Go(func() {
			if err := s.Whole(ctx); err != nil && ctx.Err() == nil {
				done(lazyDone{Error: boundedText(err.Error())})
			}
		})
	}
	slots := make(chan struct{}, maxLazyWaits)
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var news lazyNews
		if err := json.Unmarshal(lines.Bytes(), &news); err != nil {
			return fmt.Errorf("supplying the image of %s: its supervisor speaks another version: %w", filepath.Base(dir), err)
		}
		for _, name := range news.Opened {
			if s.Opened != nil {
				s.Opened(string(name))
			}
		}
		for _, name := range news.Wants {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
			wg.Go(func() {
				defer func() { <-slots }()
				d := lazyDone{Path: name}
				if err := s.Fill(ctx, string(name)); err != nil {
					if ctx.Err() != nil {
						return // the next one is asked
					}
					d.Error = boundedText(err.Error())
				}
				done(d)
			})
		}
	}
	return errNoShim
}

// boundedText keeps an error within a line.
func boundedText(s string) string { return s[:min(len(s), 4096)] }
