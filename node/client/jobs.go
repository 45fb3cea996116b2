package client

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/lumbung-net/lumbung/job"
)

// AllTasks stands for every task of a job where one is asked for.
const AllTasks = -1

// Submit hands a job over and returns it once it is stored. progress may be nil;
// it is called from this goroutine.
func (c *Client) Submit(ctx context.Context, r SubmitRequest, progress func(Progress)) (Job, error) {
	return stream[Job](ctx, c, http.MethodPost, "/v1/jobs", r, progress)
}

// Quote asks providers what a job would cost.
func (c *Client) Quote(ctx context.Context, r SubmitRequest, progress func(Progress)) (Quote, error) {
	r.Secrets = nil // nobody needs them for that
	return stream[Quote](ctx, c, http.MethodPost, "/v1/quote", r, progress)
}

// Jobs lists jobs, newest first: those under way, or all.
func (c *Client) Jobs(ctx context.Context, all bool) ([]Job, error) {
	return get[[]Job](ctx, c, "/v1/jobs", url.Values{"all": {strconv.FormatBool(all)}})
}

// Job is all there is to know of a job; ref is its id, a prefix of it that no
// other has, or its name.
func (c *Client) Job(ctx context.Context, ref string) (JobDetail, error) {
	p, err := jobPath(ref, "")
	if err != nil {
		return JobDetail{}, err
	}
	return get[JobDetail](ctx, c, p, nil)
}

// StopJob ends a job; what runs gets grace to end by itself.
func (c *Client) StopJob(ctx context.Context, ref string, grace time.Duration) (Job, error) {
	p, err := jobPath(ref, "/stop")
	if err != nil {
		return Job{}, err
	}
	return post[Job](ctx, c, p, StopRequest{Grace: grace})
}

// LogQuery chooses log records: of one task, or of AllTasks; from a number and
// a time on; and whether to wait for more until the job is over.
type LogQuery struct {
	Task   int
	From   uint64
	Since  time.Time
	Follow bool
}

// Logs calls fn with each record until there are no more. An error of fn ends
// it and is returned.
func (c *Client) Logs(ctx context.Context, ref string, q LogQuery, fn func(task int, rec LogRecord) error) error {
	p, err := jobPath(ref, "/logs")
	if err != nil {
		return err
	}
	v := sinceQuery(q.Since)
	v.Set("task", strconv.Itoa(q.Task))
	v.Set("from", strconv.FormatUint(q.From, 10))
	v.Set("follow", strconv.FormatBool(q.Follow))
	return c.lines(ctx, http.MethodGet, p, v, nil, func(raw []byte) error {
		var l LogLine
		if err := decodeLine(raw, &l); err != nil {
			return err
		}
		if l.Problem != nil {
			return l.Problem
		}
		if l.Record == nil {
			return fmt.Errorf("log line without a record: %w", errLine)
		}
		return fn(l.Task, *l.Record)
	})
}

// GetOutputs writes a job's outputs below dest, an absolute path, or to where
// the job says when dest is empty; task is one task or AllTasks.
func (c *Client) GetOutputs(ctx context.Context, ref, dest string, task int, progress func(Progress)) (Fetched, error) {
	p, err := jobPath(ref, "/outputs")
	if err != nil {
		return Fetched{}, err
	}
	return stream[Fetched](ctx, c, http.MethodPost, p, OutputsRequest{Dest: dest, Task: task}, progress)
}

// WaitJob waits until a job is over. It looks when the node tells of a change,
// not by the clock, and outlasts a restart of the node.
func (c *Client) WaitJob(ctx context.Context, ref string) (JobDetail, error) {
	// The number comes first, so that a change between the two is told of.
	last, err := c.LastEvent(ctx)
	if err != nil {
		return JobDetail{}, err
	}
	d, err := c.Job(ctx, ref)
	if err != nil || d.Job.Over() {
		return d, err
	}
	id := d.Job.ID
	err = c.Events(ctx, last, func(e Event) error {
		if e.Job != id || e.Type != job.EventJob {
			return nil
		}
		if d, err = c.Job(ctx, id); err != nil {
			return err
		}
		if d.Job.Over() {
			return errStop
		}
		return nil
	})
	if err != nil {
		return JobDetail{}, fmt.Errorf("wait for job %s: %w", ref, err)
	}
	return d, nil
}

func jobPath(ref, what string) (string, error) {
	s, err := segment(ref)
	if err != nil {
		return "", err
	}
	return "/v1/jobs/" + s + what, nil
}
