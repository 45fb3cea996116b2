package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/protocol"
)

// Error is a failure with all that a user needs to know of it.
type Error struct {
	Status    int    // of HTTP; 0 is 500
	Code      string // a stable word for scripts
	Detail    string // what failed, on which peer or file; empty: that of Err
	Remedy    string // what to do next
	Retryable bool
	Err       error // the cause, or nil
}

// Error implements error.
func (e *Error) Error() string {
	switch {
	case e.Detail == "" && e.Err != nil:
		return e.Err.Error()
	case e.Detail == "":
		return e.Code
	}
	return e.Detail
}

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Err }

// known are the errors of the packages below that a user can do something about.
var known = []struct {
	err       error
	status    int
	code      string
	remedy    string
	retryable bool
}{
	{job.ErrNotFound, http.StatusNotFound, "not_found", "check the name: `lumbung ps -a` lists the jobs, `lumbung image ls` the images", false},
	{job.ErrSpec, http.StatusUnprocessableEntity, "bad_job", "correct the job and submit it again", false},
	{protocol.ErrRetry, http.StatusServiceUnavailable, "try_again", "try again in a moment", true},
	{context.DeadlineExceeded, http.StatusGatewayTimeout, "timeout", "try again; `lumbung netcheck` tells whether the network is reached", true},
	{context.Canceled, http.StatusServiceUnavailable, "cancelled", "ask again; if the node was stopped, start it with `lumbung up -d`", true},
}

const maxDetail = 4 << 10

// problemOf explains an error.
func problemOf(err error) *client.Problem {
	var own *Error
	var told *client.Problem
	p := &client.Problem{Status: http.StatusInternalServerError, Code: "internal", Detail: err.Error(), Remedy: "see the node's log"}
	switch {
	case errors.As(err, &own):
		*p = client.Problem{Status: own.Status, Code: own.Code, Detail: err.Error(), Remedy: own.Remedy, Retryable: own.Retryable}
	case errors.As(err, &told):
		*p = *told
	default:
		for _, k := range known {
			if errors.Is(err, k.err) {
				p.Status, p.Code, p.Remedy, p.Retryable = k.status, k.code, k.remedy, k.retryable
				break
			}
		}
	}
	if p.Status < 400 || p.Status > 599 {
		p.Status = http.StatusInternalServerError
	}
	if p.Title == "" {
		p.Title = http.StatusText(p.Status)
	}
	p.Detail = clip(p.Detail, maxDetail)
	return p
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

// statusProblem is a problem as huma wants its errors.
type statusProblem struct{ *client.Problem }

// GetStatus implements huma.StatusError.
func (p statusProblem) GetStatus() int { return p.Status }

// ContentType implements huma.ContentTypeFilter.
func (p statusProblem) ContentType(string) string { return problemType }

const problemType = "application/problem+json"

// codes of the errors that huma finds by itself.
var codes = map[int]string{
	http.StatusRequestEntityTooLarge: "too_large",
	http.StatusUnsupportedMediaType:  "bad_media_type",
	http.StatusNotAcceptable:         "not_acceptable",
	http.StatusInternalServerError:   "internal",
}

// transform makes problems of huma's own errors, before they are written.
func transform(_ huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	code, ok := codes[m.Status]
	if !ok {
		code = "bad_request"
	}
	p := badRequest(m.Status, code, m.Detail)
	for i, e := range m.Errors {
		if i == 5 {
			p.Detail += fmt.Sprintf("; and %d more", len(m.Errors)-i)
			break
		}
		where := ""
		if e.Location != "" {
			where = e.Location + ": "
		}
		p.Detail += "; " + where + e.Message
	}
	p.Detail = clip(p.Detail, maxDetail)
	return p, nil
}

func badRequest(status int, code, detail string) *client.Problem {
	return &client.Problem{
		Title: http.StatusText(status), Status: status, Code: code, Detail: detail,
		Remedy: "GET /openapi.json says what a request may hold",
	}
}

// writeProblem answers with a problem; too late for a status when w has one.
func writeProblem(w http.ResponseWriter, p *client.Problem) {
	raw, err := json.Marshal(p)
	if err != nil {
		panic(fmt.Sprintf("api: encode a problem: %v", err)) // plain strings and numbers
	}
	w.Header().Set("Content-Type", problemType)
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(raw, '\n')) // the client may be gone
}
