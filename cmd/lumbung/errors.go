package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node"
	"github.com/lumbung-net/lumbung/node/client"
)

// The exit codes that are not the job's own.
const (
	exitUsage     = 2   // the command line, or nothing could be placed
	exitFailed    = 125 // lumbung failed
	exitInterrupt = 130 // a signal ended the command
)

// What an exit code came from.
const (
	sourceJob     = "job"
	sourceLumbung = "lumbung"
)

// errInterrupted says that a signal ended a command.
var errInterrupted = errors.New("interrupted")

// usageError is a command line that cannot be understood.
type usageError struct {
	err    error
	remedy string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usageErrf(format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...)}
}

// remedied is an error of this side with what to do next.
type remedied struct {
	err    error
	remedy string
}

func (e *remedied) Error() string { return e.err.Error() }
func (e *remedied) Unwrap() error { return e.err }

func withRemedy(err error, remedy string, args ...any) error {
	return &remedied{err: err, remedy: fmt.Sprintf(remedy, args...)}
}

// exitError ends the command with a code after all that there is to say has
// been said; with -o json that is one document with exit_source, code and
// remedy.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// unplacedError says that no provider took the job.
type unplacedError struct{ why unplaced }

func (e *unplacedError) Error() string { return e.why.String() }

// verdict is an error in the words and the code that the user gets.
type verdict struct {
	Error      string `json:"error"`
	ExitSource string `json:"exit_source"`
	Code       int    `json:"code"`
	ErrorCode  string `json:"error_code"` // stable word for scripts; "" where there is none
	Remedy     string `json:"remedy"`
	told       bool   // the command has said it all, as JSON too
	quiet      bool   // the person knows: it was their own ^C
}

// judge is the one place where an error becomes words and an exit code.
func judge(err error) verdict {
	v := verdict{Error: err.Error(), ExitSource: sourceLumbung, Code: exitFailed}
	var (
		usage   *usageError
		exit    *exitError
		unplace *unplacedError
		problem *client.Problem
		own     *remedied
		path    *fs.PathError
	)
	switch {
	case errors.As(err, &exit):
		v.Code, v.told = exit.code, true
		return v
	case errors.Is(err, errInterrupted):
		v.Code, v.ErrorCode, v.quiet = exitInterrupt, "interrupted", true
		if errors.As(err, &own) {
			v.Remedy = own.remedy
		}
	case errors.As(err, &usage):
		v.Code, v.ErrorCode, v.Remedy = exitUsage, "usage", usage.remedy
	case errors.As(err, &unplace):
		v.Code, v.ErrorCode, v.Remedy = exitUsage, "unplaced", unplace.why.remedy()
	case errors.As(err, &own):
		v.Remedy = own.remedy
		if word := mistake(err); word != "" {
			v.Code, v.ErrorCode = exitUsage, word
		}
	case errors.Is(err, client.ErrNoNode):
		v.ErrorCode, v.Remedy = "no_node", "lumbung up -d"
		if errors.As(err, &problem) {
			v.Error = problem.Detail
		}
	case errors.As(err, &problem):
		v.ErrorCode, v.Remedy = problem.Code, problem.Remedy
		if problem.Status == 400 || problem.Status == 422 {
			v.Code = exitUsage
		}
	case errors.Is(err, job.ErrSpec), errors.Is(err, node.ErrConfig):
		v.Code, v.ErrorCode = exitUsage, mistake(err)
	case errors.Is(err, context.DeadlineExceeded):
		v.ErrorCode = "timeout"
		v.Error = strings.ReplaceAll(v.Error, context.DeadlineExceeded.Error(), "no answer in time")
		v.Remedy = "lumbung status"
	case errors.Is(err, fs.ErrPermission) && errors.As(err, &path):
		v.ErrorCode, v.Remedy = "permission", "check who may use "+path.Path
	}
	if v.Remedy == "" {
		v.Remedy = defaultRemedy(v)
	}
	return v
}

// mistake is the word for what the user got wrong in a job or a setting, or "".
func mistake(err error) string {
	switch {
	case errors.Is(err, job.ErrSpec):
		return "bad_job"
	case errors.Is(err, node.ErrConfig):
		return "bad_configuration"
	}
	return ""
}

// defaultRemedy is what to do next where nothing better is known.
func defaultRemedy(v verdict) string {
	switch {
	case v.ErrorCode == "bad_job":
		return "correct the job and run it again; lumbung quote tries it without submitting, lumbung run --help lists what it may say"
	case v.ErrorCode == "bad_configuration":
		return "correct the setting; lumbung up --help lists them"
	case v.Code == exitInterrupt:
		return "the same again; lumbung ps shows the jobs that go on"
	case v.Code == exitUsage:
		return "lumbung help"
	}
	return "lumbung doctor; the node's log, node.log in its home, may say more"
}

// finish tells the user of an error and gives the exit code.
func (a *app) finish(err error) int {
	if err == nil {
		return 0
	}
	v := judge(err)
	if v.told {
		return v.Code
	}
	if a.wantsJSON() {
		_ = a.encode(v, "") // there is nowhere else to say it
	}
	if !v.quiet {
		a.sayError(v)
	}
	return v.Code
}

// sayError tells the person who watches of an error, and what to do next.
func (a *app) sayError(v verdict) {
	a.con.Notef("%s %s", a.con.red("error:"), v.Error)
	a.con.Notef("  try: %s", v.Remedy)
}
