//go:build e2e

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
)

func TestE2ENothingPlaced(t *testing.T) {
	w := sharedNet.get(t)
	// On a busy machine an answer may come after the window: then it is asked again.
	refused := func(heard string, flags ...string) (r result) {
		t.Helper()
		err := poll(boundedBy(t, e2eWait), func() (bool, error) {
			r = w.renter.run(t, w.dir, flags, "noop")
			return r.code != exitUsage || strings.Contains(r.err, heard), nil
		})
		if err != nil || r.code != exitUsage || !strings.Contains(r.err, "try: ") {
			t.Errorf("want %q: %v: %v", heard, err, r)
		}
		return r
	}
	refused("2 providers heard it: 2 too few CPUs", "--cpus", "64")
	r := refused("2 over your price", "--max-hourly", "0.001", "-o", "json")
	v := decode[verdictOf](t, r.out)
	if r.code != exitUsage || v.Code != exitUsage || v.ExitSource != "lumbung" || v.Remedy != "--max-hourly 0.01" {
		t.Errorf("too cheap: %v", r)
	}
	if !strings.Contains(v.Error, "2 over your price") || !strings.Contains(v.Error, "cheapest that fits: 0.01/h") {
		t.Errorf("too cheap: %s", v.Error)
	}
	if r := w.renter.run(t, w.dir, []string{"--memory", "4XB"}, "noop"); r.code != exitUsage {
		t.Errorf("no size: %v", r)
	}
	if r := w.renter.cli(t, w.dir, "", "run", "-y", "oci:./nowhere"); r.code == 0 || !strings.Contains(r.err, "nowhere") {
		t.Errorf("no image: %v", r)
	}
	r = w.renter.run(t, w.dir, []string{"--network", "outbound"}, "noop")
	if r.code != exitUsage || !strings.Contains(r.err, "2 allow no network inside") {
		t.Errorf("a network inside: %v", r)
	}
}

func TestE2EQuote(t *testing.T) {
	w := sharedNet.get(t)
	jobs := w.renter.ok(t, "ps", "-aq")
	q := decode[client.Quote](t, w.renter.ok(t, "quote", "-o", "json", "--memory", "256MB", "oci:"+e2e.image, "/job", "noop"))
	if len(q.Bids) == 0 || q.Heard == 0 || q.ImageBytes == 0 || q.Tasks != 1 || q.Bids[0].Price.String() != "0.010000 usd" {
		t.Errorf("%+v", q)
	}
	if r := w.renter.run(t, w.dir, []string{"--dry-run"}, "noop"); r.code != 0 || !strings.Contains(r.out, "PRICE") {
		t.Errorf("--dry-run: %v", r)
	}
	file := filepath.Join(t.TempDir(), "job.yaml")
	must(t, os.WriteFile(file, []byte("version: 1\nimage: oci:"+e2e.image+"\ncommand: [/job, odd]\narray: {range: 0-2, max_failed: 1}\nmemory: 256MB\ndisk: 256MB\nname: from-file\n"), 0o600))
	if r := w.renter.cli(t, w.dir, "", "quote", file); r.code != 0 || !strings.Contains(r.out, "each of 3 tasks") {
		t.Errorf("quote FILE: %v", r)
	}
	if after := w.renter.ok(t, "ps", "-aq"); after != jobs {
		t.Errorf("a quote submitted something: %q, then %q", jobs, after)
	}
	id := strings.TrimSpace(w.renter.ok(t, "submit", file))
	w.renter.done(t, id)
	must(t, os.WriteFile(file, []byte("version: 1\nimage: x\ncomand: [a]\n"), 0o600))
	if r := w.renter.cli(t, w.dir, "", "submit", file); r.code != exitUsage || !strings.Contains(r.err, "job.yaml:3:1") || !strings.Contains(r.err, `"command"`) {
		t.Errorf("a wrong key: %v", r)
	}
}

func TestE2EFakeGPU(t *testing.T) {
	w := sharedNet.get(t)
	// A fake card can be found, priced and placed.
	q := decode[client.Quote](t, w.renter.ok(t, "quote", "-o", "json", "--gpus", "rtx4090", "--memory", "256MB", "oci:"+e2e.image, "/job", "noop"))
	if len(q.Bids) != 1 || q.Bids[0].Peer != w.providers[0].id.PeerID {
		t.Errorf("%+v", q)
	}
	r := w.renter.run(t, w.dir, []string{"--gpus", "rtx4090", "--name", "card"}, "say", "drawn")
	if r.code != 0 || r.out != "drawn\n" {
		t.Fatalf("--gpus rtx4090: %v", r)
	}
	d := w.renter.detail(t, "card")
	if d.Tasks[0].Provider != w.providers[0].id.PeerID {
		t.Errorf("placed on %s", d.Tasks[0].Provider)
	}
	if r := w.renter.run(t, w.dir, []string{"--gpus", "h100-80"}, "noop"); r.code != exitUsage || !strings.Contains(r.err, "nothing could be placed") {
		t.Errorf("--gpus h100-80: %v", r)
	}
	if r := w.renter.run(t, w.dir, []string{"--gpus", "rtx4090:3"}, "noop"); r.code != exitUsage || !strings.Contains(r.err, "too few GPUs") {
		t.Errorf("--gpus rtx4090:3: %v", r)
	}
	w.providers[0].idle(t)
	// On a network for real money a node with fake cards does not start.
	cmd := w.renter.cli(t, w.dir, "", "up", "--home", t.TempDir(), "--network", "lumbung", "--role", "provider", "--fake-gpu", "rtx4090")
	if cmd.code != exitUsage || !strings.Contains(cmd.err, "takes no fake GPUs") {
		t.Errorf("fake cards on a real network: %v", cmd)
	}
}

func TestE2EProviderCommands(t *testing.T) {
	w := newWorld(t, worldOptions{providers: 1})
	p := w.providers[0]
	state := func() string {
		return decode[client.Status](t, p.ok(t, "status", "-o", "json")).Provider.State
	}
	refused := func(why string) {
		t.Helper()
		r := w.renter.run(t, w.dir, nil, "noop")
		if r.code != exitUsage || !strings.Contains(r.err, why) {
			t.Errorf("want %q: %v", why, r)
		}
	}
	taken := func() {
		t.Helper()
		if r := w.renter.run(t, w.dir, nil, "noop"); r.code != 0 {
			t.Errorf("not taken: %v", r)
		}
	}
	taken()
	p.ok(t, "provider", "pause")
	if state() != job.ProviderPaused {
		t.Errorf("paused, but %s", state())
	}
	refused("1 paused")
	must(t, func() error { p.kill(); return p.start() }())
	must(t, w.renter.sees(p))
	if state() != job.ProviderPaused {
		t.Errorf("a pause does not outlive a restart: %s", state())
	}
	p.ok(t, "provider", "resume")
	taken()

	p.ok(t, "provider", "price", "--cpu", "0.05", "--model", "rtx4090=0.9")
	prices := decode[client.Prices](t, p.ok(t, "provider", "price", "-o", "json"))
	if prices.CPU.String() != "0.050000 usd" || prices.By["rtx4090"].String() != "0.900000 usd" {
		t.Errorf("%+v", prices)
	}
	if r := w.renter.run(t, w.dir, []string{"--max-hourly", "0.04"}, "noop"); r.code != exitUsage || !strings.Contains(r.err, "cheapest that fits: 0.05/h") {
		t.Errorf("the new price: %v", r)
	}
	// A drain waits for what runs, and can be taken back.
	id := w.renter.detached(t, nil, "lines", "60", "20ms")
	w.renter.awaitLine(t, id, "line 1")
	p.ok(t, "provider", "drain")
	if s := state(); s != job.ProviderDrained {
		t.Errorf("after a drain: %s", s)
	}
	if d := w.renter.done(t, id); !d.Job.Over() {
		t.Errorf("drained before the job was over")
	}
	p.ok(t, "provider", "resume")
	must(t, w.renter.sees(p))
	taken()
	if r := w.renter.cli(t, w.dir, "", "provider", "pause"); r.code != exitFailed || !strings.Contains(r.err, "try: ") {
		t.Errorf("a renter has nothing to pause: %v", r)
	}
	w.settled(t)
}

func TestE2EMoneyAndEvents(t *testing.T) {
	w := sharedNet.get(t)
	last := decode[client.Event](t, lastLine(w.renter.ok(t, "events", "-o", "jsonl", "--since", "0")))
	if r := w.renter.run(t, w.dir, []string{"--name", "paid", "--cpus", "4"}, "lines", "40", "20ms"); r.code != 0 {
		t.Fatal(r)
	}
	d := w.renter.detail(t, "paid")
	if d.Job.Spent.IsZero() {
		t.Error("it cost nothing")
	}
	var states []string
	for line := range strings.Lines(w.renter.ok(t, "events", "-o", "jsonl", "--since", num(last.Seq))) {
		e := decode[client.Event](t, line)
		if e.Seq <= last.Seq {
			t.Errorf("event %d after %d was asked for", e.Seq, last.Seq)
		}
		if e.Type == job.EventTask && e.Job == d.Job.ID {
			states = append(states, e.State)
		}
		last = e
	}
	if got := strings.Join(states, " "); !strings.Contains(got, "running") || !strings.HasSuffix(got, "done") {
		t.Errorf("the task went through %s", got)
	}
	total := w.settled(t)
	s := decode[client.Statement](t, w.renter.ok(t, "ledger", "statement", "-o", "json"))
	if s.Owed.Cmp(total) != 0 {
		t.Errorf("the statement says %s, its rows %s", s.Owed, total)
	}
	if rows, sum := charged(t, s, d.Job.ID); rows != 1 || sum.Cmp(d.Job.Spent) != 0 {
		t.Errorf("%d rows of %s for %s", rows, sum, d.Job.Spent)
	}
	wallet := decode[client.Wallet](t, w.renter.ok(t, "wallet", "-o", "json"))
	sum := d.Job.Spent
	for i, b := range wallet.Balances {
		var err error
		if i == 0 {
			sum = b.Owed
		} else if sum, err = sum.Add(b.Owed); err != nil {
			t.Fatal(err)
		}
	}
	if sum.Cmp(total) != 0 {
		t.Errorf("the wallet owes %s, the journal %s", sum, total)
	}
	if text := w.renter.ok(t, "ledger", "statement", "--since", "1h"); !strings.Contains(text, "0.0") {
		t.Errorf("statement:\n%s", text)
	}
}

func TestE2ENodeCommands(t *testing.T) {
	w := sharedNet.get(t)
	began := time.Now()
	s := decode[client.Status](t, w.renter.ok(t, "status", "-o", "json"))
	if s.PeerID != w.renter.id.PeerID || s.Network != w.network || s.Peers < 1 || s.PID != w.renter.cmd.Process.Pid || s.Started.After(began) {
		t.Errorf("status: %+v", s)
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"status":        {[]string{"status"}, "network  "},
		"id":            {[]string{"id"}, w.renter.id.PeerID},
		"ping":          {[]string{"ping", w.providers[0].id.PeerID}, "direct"},
		"ping address":  {[]string{"ping", w.providers[0].id.Addrs[0]}, "direct"},
		"netcheck":      {[]string{"netcheck"}, "127.0.0.1"},
		"doctor":        {[]string{"doctor"}, "runs, process"},
		"version":       {[]string{"version"}, "lumbung"},
		"bash":          {[]string{"completion", "bash"}, "__start_lumbung"},
		"zsh":           {[]string{"completion", "zsh"}, "#compdef"},
		"fish":          {[]string{"completion", "fish"}, "complete -c lumbung"},
		"complete jobs": {[]string{"__complete", "image", "r"}, "rm"},
		"help":          {[]string{"--help"}, "devnet"},
	} {
		if r := w.renter.cli(t, w.dir, "", c.args...); r.code != 0 || !strings.Contains(r.out, c.want) {
			t.Errorf("%s: want %q: %v", name, c.want, r)
		}
	}
	if r := w.providers[0].cli(t, w.dir, "", "doctor", "--role", "provider"); r.code != 0 || !strings.Contains(r.out, "sandbox") {
		t.Errorf("doctor --role provider: %v", r)
	}
	if r := w.renter.cli(t, w.dir, "", "ping", w.boot.id.PeerID[:len(w.boot.id.PeerID)-2]); r.code == 0 {
		t.Errorf("ping of no peer: %v", r)
	}
	if r := w.renter.cli(t, w.dir, "", "up", "--network", w.network); r.code == 0 || !strings.Contains(r.err, "runs already") {
		t.Errorf("a second node in one home: %v", r)
	}
	if r := w.renter.cli(t, w.dir, "", "--home", t.TempDir(), "ps"); r.code != exitFailed || !strings.Contains(r.err, "lumbung up -d") {
		t.Errorf("no node: %v", r)
	}
	if r := w.renter.cli(t, w.dir, "", "inspect", "nojob"); r.code != exitFailed || !strings.Contains(r.err, "try: ") {
		t.Errorf("no such job: %v", r)
	}
	if r := w.renter.cli(t, w.dir, "", "rum"); r.code != exitUsage || !strings.Contains(r.err, "run") {
		t.Errorf("no such command: %v", r)
	}
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}
