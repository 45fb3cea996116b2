package api

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
)

func TestLongRequestTellsProgress(t *testing.T) {
	r := start(t)
	want := filled[client.Job]()
	seen := make(chan client.Progress, 1000)
	first := make(chan struct{})
	r.fake.hooks.submit = func(ctx context.Context, _ client.SubmitRequest, progress func(client.Progress)) (client.Job, error) {
		progress(client.Progress{Phase: "image", Done: 1, Total: 1000})
		select {
		case <-first: // the caller has it while the work goes on
		case <-ctx.Done():
			return client.Job{}, ctx.Err()
		}
		for i := range uint64(100_000) {
			progress(client.Progress{Phase: "inputs", Done: i, Total: 100_000, Rate: 5})
		}
		progress(client.Progress{Phase: "inputs", Done: 100_000, Total: 100_000, Rate: 5})
		return want, nil
	}
	begin := time.Now()
	got, err := r.Submit(t.Context(), submitRequest(), func(p client.Progress) {
		if len(seen) == 0 {
			close(first)
		}
		seen <- p
	})
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v, %v", got, err)
	}
	if most := int(time.Since(begin)/progressEvery) + 3; len(seen) > most {
		t.Errorf("%d lines of progress, at most %d fit the rate", len(seen), most)
	}
	var last client.Progress
	for len(seen) > 0 {
		last = <-seen
	}
	if last != (client.Progress{Phase: "inputs", Done: 100_000, Total: 100_000, Rate: 5}) {
		t.Errorf("the last progress is %+v", last)
	}
}

func TestMeterRate(t *testing.T) {
	now := time.Unix(1000, 0)
	m := &meter{now: func() time.Time { return now }, news: make(chan struct{}, 1)}
	take := func(p client.Progress) float64 {
		m.set(p)
		got, ok := m.take()
		if !ok || got.Done != p.Done {
			t.Fatalf("%+v %v", got, ok)
		}
		return got.Rate
	}
	if r := take(client.Progress{Phase: "a", Done: 500}); r != 0 {
		t.Errorf("a rate of %v out of nothing", r)
	}
	now = now.Add(2 * time.Second)
	if r := take(client.Progress{Phase: "a", Done: 1500}); r != 500 {
		t.Errorf("rate %v, want 500: what was there before does not count", r)
	}
	if r := take(client.Progress{Phase: "a", Done: 1600, Rate: 7}); r != 7 {
		t.Errorf("a rate that was given became %v", r)
	}
	if r := take(client.Progress{Phase: "b", Done: 10}); r != 0 {
		t.Errorf("the rate %v of another phase", r)
	}
	if _, ok := m.take(); ok {
		t.Error("old news")
	}
}

func TestLongRequestFails(t *testing.T) {
	r := start(t)
	for _, told := range []bool{false, true} {
		reported := make(chan struct{})
		r.fake.hooks.submit = func(ctx context.Context, _ client.SubmitRequest, progress func(client.Progress)) (client.Job, error) {
			if told {
				progress(client.Progress{Phase: "image"})
				<-reported
			}
			return client.Job{}, &Error{Status: 507, Code: "no_room", Detail: "the disk is full", Remedy: "`lumbung gc`"}
		}
		_, err := r.Submit(t.Context(), submitRequest(), func(client.Progress) { close(reported) })
		if p := problemIn(t, err); p.Status != 507 || p.Code != "no_room" || p.Remedy != "`lumbung gc`" {
			t.Errorf("told %v: %+v", told, p)
		}
	}
}

func TestCancelEndsTheWork(t *testing.T) {
	r := start(t)
	ended := make(chan error, 1)
	r.fake.hooks.submit = func(ctx context.Context, _ client.SubmitRequest, progress func(client.Progress)) (client.Job, error) {
		progress(client.Progress{Phase: "image"})
		<-ctx.Done()
		ended <- ctx.Err()
		return client.Job{}, ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := r.Submit(ctx, submitRequest(), func(client.Progress) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the caller got %v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the work got %v", err)
	}
}

func TestLogs(t *testing.T) {
	r := start(t)
	at := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	rec := func(i int) client.LogRecord {
		return client.LogRecord{Seq: uint64(i), Stream: 1 + i%2, Time: at, Data: fmt.Appendf(nil, "line %d\x00\xff\n", i)}
	}
	step := make(chan struct{})
	r.fake.hooks.logs = func(ctx context.Context, q client.LogQuery, fn func(int, client.LogRecord) error) error {
		for i := range 5 {
			if err := fn(i%3, rec(i)); err != nil {
				return err
			}
			select { // each line arrives before the next is made
			case <-step:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
	n := 0
	err := r.Logs(t.Context(), "j", client.LogQuery{Task: client.AllTasks, From: 4, Since: at, Follow: true}, func(task int, got client.LogRecord) error {
		if want := rec(n); task != n%3 || !reflect.DeepEqual(got, want) {
			t.Errorf("record %d: task %d %+v", n, task, got)
		}
		n++
		step <- struct{}{}
		return nil
	})
	if err != nil || n != 5 {
		t.Fatalf("%d records, %v", n, err)
	}
	if c := r.fake.lastCall(); c != "logs j -1 4 2026-05-06T07:08:09Z true" {
		t.Errorf("the backend heard %q", c)
	}
	// A reader that has enough ends the backend's work.
	enough := errors.New("enough")
	err = r.Logs(t.Context(), "j", client.LogQuery{Follow: true}, func(int, client.LogRecord) error { return enough })
	if !errors.Is(err, enough) {
		t.Errorf("got %v", err)
	}
	// A failure in the middle arrives behind what came before it.
	r.fake.hooks.logs = func(_ context.Context, _ client.LogQuery, fn func(int, client.LogRecord) error) error {
		return errors.Join(fn(0, rec(0)), job.ErrNotFound)
	}
	n = 0
	err = r.Logs(t.Context(), "j", client.LogQuery{}, func(int, client.LogRecord) error { n++; return nil })
	if p := problemIn(t, err); p.Code != "not_found" || n != 1 {
		t.Errorf("%+v after %d records", p, n)
	}
	r.fake.hooks.logs = nil
	if err := r.Logs(t.Context(), "j", client.LogQuery{}, nil); err != nil {
		t.Errorf("no records at all: %v", err)
	}
}

func TestCat(t *testing.T) {
	r := start(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	r.fake.hooks.cat = func(_ context.Context, w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
	var got bytes.Buffer
	if err := r.Cat(t.Context(), "bafy/a b?", &got); err != nil || !bytes.Equal(got.Bytes(), data) {
		t.Fatalf("%d bytes, %v", got.Len(), err)
	}
	if c := r.fake.lastCall(); c != "cat bafy/a b?" {
		t.Errorf("the backend heard %q", c)
	}
	r.fake.hooks.cat = func(_ context.Context, w io.Writer) error {
		_, err := w.Write(data)
		return errors.Join(err, &Error{Status: 502, Code: "gone", Detail: "peer é\nis gone", Remedy: "try again", Retryable: true})
	}
	got.Reset()
	err := r.Cat(t.Context(), "bafy", &got)
	if p := problemIn(t, err); p.Code != "gone" || p.Detail != "peer é\nis gone" || !p.Retryable || got.Len() != len(data) {
		t.Errorf("%+v after %d bytes", p, got.Len())
	}
	r.fake.hooks.cat = func(context.Context, io.Writer) error { return job.ErrNotFound }
	if p := problemIn(t, r.Cat(t.Context(), "bafy", io.Discard)); p.Status != 404 {
		t.Errorf("%+v", p)
	}
	r.fake.hooks.cat = func(context.Context, io.Writer) error { return nil }
	if err := r.Cat(t.Context(), "bafy", io.Discard); err != nil {
		t.Errorf("an empty file: %v", err)
	}
}

// numbered checks that events come in order, each once.
func numbered(t *testing.T, next *uint64, e client.Event) {
	t.Helper()
	if e.Seq != *next || e.Text != fmt.Sprintf("event %d\nsecond line", e.Seq) {
		t.Errorf("event %d %q, want %d", e.Seq, e.Text, *next)
	}
	*next = e.Seq + 1
}

func eventsFrom(first, n int, pad string) []client.Event {
	out := make([]client.Event, n)
	for i := range out {
		out[i] = client.Event{Type: job.EventNotice, Text: fmt.Sprintf("event %d\nsecond line", first+i), State: pad}
	}
	return out
}

var errEnough = errors.New("enough")

func TestEventsReplayThenFollow(t *testing.T) {
	r := start(t)
	r.fake.emit(eventsFrom(1, 10, "")...)
	if n := must(r.LastEvent(t.Context()))(t); n != 10 {
		t.Errorf("last event %d", n)
	}
	next := uint64(4)
	err := r.Events(t.Context(), 3, func(e client.Event) error {
		numbered(t, &next, e)
		switch e.Seq {
		case 10:
			r.fake.emit(eventsFrom(11, 10, "")...)
		case 20:
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) || next != 21 {
		t.Errorf("%v, next %d", err, next)
	}
}

// proxy forwards a home's socket to a server and cuts each connection after so
// many bytes of answer.
func proxy(t *testing.T, to string, cut func(n int) int64) (home string) {
	t.Helper()
	home = t.TempDir()
	path, _ := client.HomeSocket(home)
	if err := privateDir(client.RunDir(home)); err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	l := must(lc.Listen(t.Context(), "unix", path))(t)
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			in, err := l.Accept()
			if err != nil {
				return
			}
			forward(ctx, in, to, cut(n))
		}
	}()
	t.Cleanup(func() { cancel(); _ = l.Close(); <-done })
	return home
}

// forward serves one connection at a time, which is all the test needs.
func forward(ctx context.Context, in net.Conn, to string, cut int64) {
	defer func() { _ = in.Close() }()
	var d net.Dialer
	out, err := d.DialContext(ctx, "unix", to)
	if err != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = in.Close(); _ = out.Close() })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(out, in)
		_ = out.Close()
	}()
	_, _ = io.CopyN(in, out, cut)
	_ = in.Close()
	_ = out.Close()
	<-done
}

func TestEventsResumeAfterBreaks(t *testing.T) {
	r := start(t)
	const total = 300
	r.fake.emit(eventsFrom(1, total/2, "")...)
	cuts := 0
	home := proxy(t, r.server.SocketPath(), func(n int) int64 {
		cuts = n
		return int64(400 + 137*n) // in the middle of headers, of a message, between two
	})
	c := must(client.New(home))(t)
	defer func() { _ = c.Close() }()
	next := uint64(1)
	err := c.Events(t.Context(), 0, func(e client.Event) error {
		numbered(t, &next, e)
		switch e.Seq {
		case total / 4:
			r.fake.emit(eventsFrom(total/2+1, total/2, "")...)
		case total:
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) || next != total+1 || cuts < 5 {
		t.Errorf("%v, next %d, %d cuts", err, next, cuts)
	}
}

func TestSlowReaderIsDroppedAndResumes(t *testing.T) {
	r := start(t, func(o *Options) { o.SlowReader = 100 * time.Millisecond })
	r.fake.watched = make(chan error, 10)
	const total = 100
	r.fake.emit(eventsFrom(1, total, strings.Repeat("x", 64<<10))...) // over what any socket buffers
	next, dropped := uint64(1), 0
	err := r.Events(t.Context(), 0, func(e client.Event) error {
		numbered(t, &next, e)
		switch e.Seq {
		case 2, 60:
			if err := <-r.fake.watched; err == nil {
				t.Error("a watch ended without an error")
			}
			dropped++
		case total:
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) || next != total+1 || dropped != 2 {
		t.Errorf("%v, next %d, dropped %d times", err, next, dropped)
	}
}

func TestEventsTellWhyTheyEnd(t *testing.T) {
	r := start(t)
	r.fake.failWith(&Error{Status: 410, Code: "pruned", Detail: "events before 5 are gone", Remedy: "begin at 5"})
	err := r.Events(t.Context(), 1, nil)
	if p := problemIn(t, err); p.Code != "pruned" || p.Remedy != "begin at 5" {
		t.Errorf("%+v", p)
	}
}

// The bytes of the stream, as a browser reads them.
func TestEventStreamBytes(t *testing.T) {
	r := start(t, func(o *Options) { o.Heartbeat = 10 * time.Millisecond })
	r.fake.emit(client.Event{Type: "node", Text: "a\nb", Time: time.Unix(0, 0).UTC()}, client.Event{Type: "node", Time: time.Unix(1, 0).UTC()})
	req := must(http.NewRequestWithContext(t.Context(), "GET", "http://lumbung/v1/events?since=0", nil))(t)
	req.Header.Set("Last-Event-ID", "1")
	resp := must(r.plain(t).Do(req))(t)
	defer func() { _ = resp.Body.Close() }()
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Errorf("type %s", ct)
	}
	lines := bufio.NewScanner(resp.Body)
	var got []string
	for len(got) < 7 && lines.Scan() {
		got = append(got, lines.Text())
	}
	all := strings.Join(got, "\n")
	if !strings.Contains(all, "id: 2\ndata: {\"seq\":2,\"time\":\"1970-01-01T00:00:01Z\",\"type\":\"node\"}\n\n") || strings.Contains(all, "id: 1") {
		t.Errorf("%q", all)
	}
	if !strings.Contains(all+"\n", "\n:\n") {
		t.Errorf("no sign of life in %q", all)
	}
}

func TestWaitJob(t *testing.T) {
	r := start(t)
	var state string
	r.fake.hooks.job = func() client.JobDetail {
		r.fake.mu.Lock()
		defer r.fake.mu.Unlock()
		return client.JobDetail{Job: client.Job{ID: "j1", State: state}}
	}
	set := func(s string) { r.fake.mu.Lock(); state = s; r.fake.mu.Unlock() }
	set(job.JobRunning)
	done := make(chan error, 1)
	go func() {
		d, err := r.WaitJob(t.Context(), "name")
		if err == nil && d.Job.State != job.JobDone {
			err = fmt.Errorf("state %s", d.Job.State)
		}
		done <- err
	}()
	r.fake.emit(client.Event{Type: job.EventJob, Job: "j2"}, client.Event{Type: job.EventTask, Job: "j1"}, client.Event{Type: job.EventJob, Job: "j1"})
	select {
	case err := <-done:
		t.Fatalf("ended early: %v", err)
	default:
	}
	set(job.JobDone)
	r.fake.emit(client.Event{Type: job.EventJob, Job: "j1"})
	if err := <-done; err != nil {
		t.Error(err)
	}
	must(r.WaitJob(t.Context(), "name"))(t) // over already
}

func TestStopEndsStreams(t *testing.T) {
	r := start(t)
	r.fake.emit(eventsFrom(1, 1, "")...)
	opened, ended := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		ended <- r.Events(ctx, 0, func(client.Event) error { close(opened); return nil })
	}()
	<-opened
	begin := time.Now()
	r.stop()
	if took := time.Since(begin); took > r.server.opt.Grace {
		t.Errorf("it took %s", took)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := r.Status(t.Context()); !errors.Is(err, client.ErrNoNode) {
		t.Errorf("after the end: %v", err)
	}
}
