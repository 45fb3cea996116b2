package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"image"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/lumbung-net/lumbung/examples/pack"
	"github.com/lumbung-net/lumbung/examples/tiles/render"
	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/node/client"
)

type demoOptions struct {
	devnetOptions
	tiles  string
	out    string
	within time.Duration
}

// demoCmd is what `make demo` runs: a network, a picture rendered on it, and the
// proof that both are right. It is no part of the product, so help hides it.
func (a *app) demoCmd() *cobra.Command {
	var o demoOptions
	cmd := &cobra.Command{
		Use:    "demo",
		Short:  "Render a picture on a network of this machine's own, and check it",
		Hidden: true,
		Args:   takes(),
		RunE: a.do(func(ctx context.Context, _ []string) error {
			outliveReaders()
			began := a.now()
			if err := a.demo(ctx, o); err != nil {
				return err
			}
			return inTime(a.now().Sub(began), o.within)
		}),
	}
	o.flags(cmd)
	cmd.Flags().StringVar(&o.tiles, "tiles", "", "`program` that renders, built static from examples/tiles (default beside this one)")
	cmd.Flags().DurationVar(&o.within, "within", 0, "fail when it takes longer than this `time` (default any)")
	cmd.Flags().StringVar(&o.out, "out", filepath.Join("out", "demo.png"), "`file` for the picture")
	return cmd
}

// tilesOfTask is how many of the picture's tiles a task renders.
const tilesOfTask = 3

// inTime fails when what took so long was to be done in less.
func inTime(took, within time.Duration) error {
	if within <= 0 || took <= within {
		return nil
	}
	return withRemedy(fmt.Errorf("the demo took %s, over the %s that it may", spanText(took), spanText(within)), "the same again on a machine with nothing else to do")
}

func (a *app) demo(ctx context.Context, o demoOptions) error {
	began := a.now()
	program, err := findTiles(o.tiles)
	if err != nil {
		return err
	}
	d, err := a.startDevnet(ctx, o.devnetOptions)
	if err != nil {
		return err
	}
	defer func() {
		d.stop()
		a.con.Notef("stopped everything; %s in all", spanText(a.now().Sub(began)))
	}()
	a.step(began, "network %s is up: a bootstrap node, %d providers, a renter, each a process", d.network, o.providers)

	layout := filepath.Join(d.dir, "tiles-image")
	id, err := packTiles(layout, program)
	if err != nil {
		return err
	}
	a.step(began, "packed %s as an OCI image, %s", program, id[:19])

	parts := filepath.Join(d.dir, "parts")
	detail, err := a.demoJob(ctx, d, layout, parts)
	if err != nil {
		return err
	}
	a.step(began, "%s rendered", plural(len(detail.Tasks), "task"))

	if err := a.demoPicture(ctx, began, parts, o.out); err != nil {
		return err
	}
	if err := everyoneWorked(d, detail); err != nil {
		return err
	}
	return a.demoStatements(ctx, began, d)
}

func (a *app) step(began time.Time, format string, args ...any) {
	a.con.Notef("%s %s", a.con.green(fmt.Sprintf("[%5.1fs]", a.now().Sub(began).Seconds())), fmt.Sprintf(format, args...))
}

// findTiles is the static program that renders.
func findTiles(named string) (string, error) {
	places := []string{named}
	if named == "" {
		places = []string{filepath.Join("build", "tiles")}
		if self, err := os.Executable(); err == nil {
			places = append([]string{filepath.Join(filepath.Dir(self), "tiles")}, places...)
		}
	}
	for _, p := range places {
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", withRemedy(fmt.Errorf("no program that renders at %s", strings.Join(places, " or ")),
		"make demo, or CGO_ENABLED=0 go build -o build/tiles ./examples/tiles")
}

func packTiles(layout, program string) (string, error) {
	raw, err := os.ReadFile(program)
	if err != nil {
		return "", fmt.Errorf("the program that renders: %w", err)
	}
	return pack.Layout(layout, pack.Image{
		Name:       "tiles:latest",
		Files:      []pack.File{{Path: "/bin/tiles", Mode: 0o755, Data: raw}},
		Entrypoint: []string{"/bin/tiles"},
		Workdir:    "/",
	})
}

// demoJob runs the array over all providers and follows it to its end.
func (a *app) demoJob(ctx context.Context, d *devnet, layout, parts string) (client.JobDetail, error) {
	spec := job.Spec{
		Name: "picture", Image: "oci:" + layout,
		Array:     &job.Array{First: 1, Last: render.Tiles, Chunk: tilesOfTask},
		CPUMillis: 1000, Memory: 256 << 20, Disk: 256 << 20,
		Outputs: []job.OutputSpec{{From: "/out", To: parts}},
		Limits:  job.LimitSpec{Run: 5 * time.Minute},
	}.WithDefaults()
	req, err := submission(spec, d.dir)
	if err != nil {
		return client.JobDetail{}, err
	}
	c := d.renter().c
	q, err := a.askQuote(ctx, c, req)
	if err != nil {
		return client.JobDetail{}, err
	}
	if len(q.Bids) == 0 {
		return client.JobDetail{}, &unplacedError{why: whyNot(q)}
	}
	a.con.Notef("         %s", quoteLine(q))
	m := a.newMeter("submitting")
	j, err := c.Submit(ctx, req, m.Update)
	m.Done()
	if err != nil {
		return client.JobDetail{}, err
	}
	detail, err := newFollower(a, c, j.ID).follow(ctx)
	if err != nil {
		return detail, err
	}
	if o := outcomeOf(detail); o.Code != 0 {
		return detail, withRemedy(fmt.Errorf("job %s %s: %s", j.ID, o.State, o.Reason), "%s", o.Remedy)
	}
	m = a.newMeter("fetching the tiles")
	defer m.Done()
	_, err = c.GetOutputs(ctx, j.ID, parts, client.AllTasks, m.Update)
	return detail, err
}

// demoPicture puts the tiles together and compares the picture with one that
// this process renders by itself.
func (a *app) demoPicture(ctx context.Context, began time.Time, parts, out string) error {
	where, err := findParts(parts)
	if err != nil {
		return err
	}
	picture, err := render.Assemble(func(tile int) ([]byte, error) {
		name, ok := where[render.Name(tile)]
		if !ok {
			return nil, fmt.Errorf("%s is not among the outputs in %s", render.Name(tile), parts)
		}
		return os.ReadFile(name)
	})
	if err != nil {
		return err
	}
	raw, err := render.Encode(picture)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil { //nolint:gosec // a picture for everybody
		return fmt.Errorf("the picture: %w", err)
	}
	if err := os.WriteFile(out, raw, 0o644); err != nil { //nolint:gosec // a picture for everybody
		return fmt.Errorf("the picture: %w", err)
	}
	local, err := renderHere(ctx)
	if err != nil {
		return err
	}
	got, want := sha256.Sum256(picture.Pix), sha256.Sum256(local.Pix)
	if got != want {
		return fmt.Errorf("the picture in %s is wrong: its pixels have sha256 %x, rendered here they have %x", out, got, want)
	}
	a.step(began, "%s is right: sha256 of its pixels is %x…, as rendered here", out, got[:8])
	return nil
}

// findParts lists the files below a folder by their base name.
func findParts(dir string) (map[string]string, error) {
	where := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			where[e.Name()] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("the tiles: %w", err)
	}
	return where, nil
}

// renderHere renders the whole picture in this process.
func renderHere(ctx context.Context) (*image.RGBA, error) {
	tiles := make([][]byte, render.Tiles+1)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for n := 1; n <= render.Tiles; n++ {
		group.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			img, err := render.Tile(n)
			if err == nil {
				tiles[n], err = render.Encode(img)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("rendering the picture here: %w", err)
	}
	return render.Assemble(func(n int) ([]byte, error) { return tiles[n], nil })
}

// everyoneWorked fails when a provider was left out.
func everyoneWorked(d *devnet, detail client.JobDetail) error {
	did := map[string]int{}
	for _, t := range detail.Tasks {
		did[t.Provider]++
	}
	var idle []string
	for _, p := range d.providers() {
		if did[p.id.PeerID] == 0 {
			idle = append(idle, p.name)
		}
	}
	if len(idle) > 0 {
		return fmt.Errorf("not spread over all providers: %s ran no task", strings.Join(idle, ", "))
	}
	return nil
}

// demoStatements prints every journal and checks that they agree to the unit.
func (a *app) demoStatements(ctx context.Context, began time.Time, d *devnet) error {
	books, total, err := settledBooks(ctx, d)
	if err != nil {
		return err
	}
	for _, n := range append([]*devNode{d.renter()}, d.providers()...) {
		s := books[n.id.PeerID]
		_, _ = fmt.Fprintf(a.con.out, "\nstatement of %s, %s\n", n.name, n.id.PeerID)
		if err := a.table(func(w io.Writer) { showStatement(w, s) }); err != nil {
			return err
		}
	}
	_, _ = fmt.Fprintln(a.con.out)
	a.step(began, "the statements agree to the unit: %s", moneyText(total))
	return nil
}

// settleWait is how long the journals of a job that is over may take to agree:
// the last receipts are on their way, on a machine that has just been busy.
const settleWait = 30 * time.Second

// settledBooks are the journals of renter and providers once they agree, and
// what was charged.
func settledBooks(ctx context.Context, d *devnet) (books map[string]client.Statement, total ledger.Amount, err error) {
	ctx, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	var providers []string
	for _, p := range d.providers() {
		providers = append(providers, p.id.PeerID)
	}
	var differ error
	err = poll(ctx, func() (bool, error) {
		books = map[string]client.Statement{}
		for _, n := range append([]*devNode{d.renter()}, d.providers()...) {
			s, err := n.c.Statement(ctx, time.Time{})
			if err != nil {
				return false, fmt.Errorf("statement of %s: %w", n.name, err)
			}
			books[n.id.PeerID] = s
		}
		total, differ = agree(books, d.renter().id.PeerID, providers)
		return differ == nil, nil
	})
	if differ != nil && ctx.Err() != nil {
		err = fmt.Errorf("the statements do not agree within %s: %w", settleWait, differ)
	}
	return books, total, err
}

// agree compares the renter's journal with the providers', lease by lease, and
// returns what was charged.
func agree(books map[string]client.Statement, renter string, providers []string) (ledger.Amount, error) {
	theirs := map[string]client.StatementRow{}
	for _, p := range providers {
		for _, r := range books[p].Rows {
			if r.Peer != renter {
				return ledger.Amount{}, fmt.Errorf("provider %s booked lease %s with a stranger, %s", p, r.Lease, r.Peer)
			}
			r.Peer = p
			theirs[r.Lease] = r
		}
	}
	var errs []error
	total := ledger.Units(job.Asset, 0)
	for _, r := range books[renter].Rows {
		t, ok := theirs[r.Lease]
		delete(theirs, r.Lease)
		if !ok || t.Peer != r.Peer || t.Charge != r.Charge || t.Usage != r.Usage {
			errs = append(errs, fmt.Errorf("lease %s: the renter booked %s for %d ms with %s, the provider %s for %d ms",
				r.Lease, r.Charge, r.Usage, r.Peer, t.Charge, t.Usage))
			continue
		}
		sum, err := total.Add(r.Charge)
		if err != nil {
			return total, err
		}
		total = sum
	}
	for lease, t := range theirs {
		errs = append(errs, fmt.Errorf("lease %s: provider %s booked %s, the renter nothing", lease, t.Peer, t.Charge))
	}
	if len(books[renter].Rows) == 0 {
		errs = append(errs, errors.New("the renter's journal is empty"))
	}
	if owed := books[renter].Owed; owed.Cmp(total) != 0 {
		errs = append(errs, fmt.Errorf("the renter owes %s, its rows sum to %s", owed, total))
	}
	slices.SortFunc(errs, func(x, y error) int { return strings.Compare(x.Error(), y.Error()) })
	return total, errors.Join(errs...)
}
