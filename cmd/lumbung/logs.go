package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) logsCmd() *cobra.Command {
	var follow, stamps bool
	var since string
	task := client.AllTasks
	cmd := &cobra.Command{
		Use:               "logs [-f] [--since TIME] [--task N] JOB",
		Short:             "Show what a job has printed, stdout to stdout and stderr to stderr",
		Args:              takes("JOB"),
		ValidArgsFunction: a.completeJobs,
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			from, err := parseSince(since, a.now())
			if err != nil {
				return err
			}
			d, err := c.Job(ctx, args[0])
			if err != nil {
				return err
			}
			p := a.newLogPrinter(d.Job.Spec.Array != nil && task == client.AllTasks)
			p.stamps = stamps
			p.query = client.LogQuery{Task: task, Since: from, Follow: follow}
			if a.format == "json" {
				return p.array(func() error { return p.follow(ctx, c, d.Job.ID) })
			}
			return p.follow(ctx, c, d.Job.ID)
		}),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "wait for more until the job is over")
	cmd.Flags().StringVar(&since, "since", "", "only what came after a `time`, such as 10m or 2026-01-02T15:04:05Z")
	cmd.Flags().IntVar(&task, "task", client.AllTasks, "only `task` N of an array (default all)")
	cmd.Flags().BoolVarP(&stamps, "timestamps", "t", false, "begin lines with their time")
	return a.withOutput(cmd)
}

// parseSince reads a point in time: an RFC 3339 time, or how long ago.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, usageErrf("--since %s: want how long ago, such as 10m, or a time such as 2026-01-02T15:04:05Z", s)
	}
	return t, nil
}

// logPrinter writes a job's output. Lines of an array begin with their task.
type logPrinter struct {
	a      *app
	prefix bool
	stamps bool
	query  client.LogQuery
	items  *jsonArray               // the records are the result, as elements of it
	parts  map[logSource][]byte     // lines that have no end yet
	last   map[int]client.LogRecord // newest printed, by task
	again  map[int]client.LogRecord // up to where a stream taken up again repeats
	count  atomic.Int64
}

type logSource struct{ task, stream int }

// The streams of a log record.
const (
	streamOut    = 1
	streamErr    = 2
	streamRemark = 3
)

// maxPart bounds a line that is kept until its end comes.
const maxPart = 64 << 10

func (a *app) newLogPrinter(prefix bool) *logPrinter {
	return &logPrinter{
		a: a, prefix: prefix, query: client.LogQuery{Task: client.AllTasks, Follow: true},
		parts: map[logSource][]byte{}, last: map[int]client.LogRecord{},
	}
}

// logRetries is how often in a row a broken stream is taken up again.
const logRetries = 8

// follow prints the job's output to its end. A stream that breaks, for the node
// was restarted, is taken up where it was.
func (p *logPrinter) follow(ctx context.Context, c *client.Client, id string) error {
	defer p.flush()
	for try := 0; ; try++ {
		// What was printed before the stream broke, or before this was called
		// again, comes once more and is passed over.
		p.again = maps.Clone(p.last)
		before := p.count.Load()
		err := c.Logs(ctx, id, p.query, p.record)
		if err == nil || ctx.Err() != nil || !p.query.Follow {
			return err
		}
		var problem *client.Problem
		var own *outputError
		if errors.As(err, &own) || errors.As(err, &problem) && !problem.Retryable {
			return err
		}
		if p.count.Load() > before {
			try = 0
		}
		if try == logRetries {
			return err
		}
		if err := sleep(ctx, min(100*time.Millisecond<<try, 5*time.Second)); err != nil {
			return err
		}
	}
}

// sleep waits between tries.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// outputError says that our own output could not be written.
type outputError struct{ error }

func (e *outputError) Unwrap() error { return e.error }

// record prints one record, but not twice when a stream was taken up again.
func (p *logPrinter) record(task int, r client.LogRecord) error {
	if seen, ok := p.again[task]; ok {
		if r.Seq == seen.Seq && r.Time.Equal(seen.Time) {
			delete(p.again, task)
		}
		return nil
	}
	p.last[task] = client.LogRecord{Seq: r.Seq, Time: r.Time}
	p.count.Add(1)
	if err := p.print(task, r); err != nil {
		return &outputError{err}
	}
	return nil
}

// array makes one JSON array of the records that follow prints, as they come.
// What fails before the first is left to say in its place.
func (p *logPrinter) array(follow func() error) error {
	p.items = &jsonArray{a: p.a}
	err := follow()
	if err != nil && !p.items.begun {
		return err
	}
	return errors.Join(err, p.items.end())
}

// logLine is a record as -o json and -o jsonl show it.
type logLine struct {
	Type   string    `json:"type"`
	Task   int       `json:"task"`
	Seq    uint64    `json:"seq"`
	Stream string    `json:"stream"`
	Time   time.Time `json:"time"`
	Data   string    `json:"data"`
}

func (p *logPrinter) print(task int, r client.LogRecord) error {
	if p.items != nil || p.a.format == "jsonl" {
		names := map[int]string{streamOut: "stdout", streamErr: "stderr", streamRemark: "sandbox"}
		line := logLine{"log", task, r.Seq, names[r.Stream], r.Time, string(r.Data)}
		if p.items != nil {
			return p.items.add(line)
		}
		return p.a.encode(line, "")
	}
	if r.Stream == streamRemark {
		p.a.con.Notef("%s %s", p.a.con.yellow("sandbox:"), clean(string(bytes.TrimSpace(r.Data))))
		return nil
	}
	// With -o json stdout is for the result alone: of `run`, how the job ended.
	stderr := r.Stream == streamErr || p.a.format == "json"
	if !p.prefix && !p.stamps {
		return p.a.con.Raw(stderr, r.Data)
	}
	return p.lines(task, r, stderr)
}

// lines prints whole lines with what goes before them, and keeps the rest.
func (p *logPrinter) lines(task int, r client.LogRecord, stderr bool) error {
	from := logSource{task, r.Stream}
	data := append(p.parts[from], r.Data...)
	var out bytes.Buffer
	for {
		i := bytes.IndexByte(data, '\n')
		if i < 0 && len(data) <= maxPart {
			break
		}
		if i < 0 {
			i = len(data) - 1
		}
		out.WriteString(p.before(task, r.Time))
		out.Write(bytes.TrimSuffix(data[:i+1], []byte("\n")))
		out.WriteByte('\n')
		data = data[i+1:]
	}
	if len(data) == 0 {
		delete(p.parts, from)
	} else {
		p.parts[from] = bytes.Clone(data)
	}
	return p.a.con.Raw(stderr, out.Bytes())
}

func (p *logPrinter) before(task int, at time.Time) string {
	s := ""
	if p.stamps {
		s = at.UTC().Format("2006-01-02T15:04:05.000Z ")
	}
	if p.prefix {
		s += fmt.Sprintf("[%d] ", task)
	}
	return s
}

// flush prints the lines that never got an end.
func (p *logPrinter) flush() {
	for from, data := range p.parts {
		line := p.before(from.task, p.last[from.task].Time) + string(data) + "\n"
		_ = p.a.con.Raw(from.stream == streamErr || p.a.format == "json", []byte(line))
		delete(p.parts, from)
	}
}
