package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/lumbung-net/lumbung/node/client"
)

// process is a node of this same binary in a process, and a session, of its own.
type process struct {
	args    []string
	logFile string
	env     []string // added to this process's own

	tied   bool // it ends when its stdin does
	stdin  io.WriteCloser
	cmd    *exec.Cmd
	from   int64 // where its log begins
	exited chan struct{}
	err    error // of Wait, once exited
}

// startProcess starts a node that outlives this process, unless it is tied.
func startProcess(ctx context.Context, p process) (*process, error) {
	bin, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program's file: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(p.logFile), 0o700); err != nil {
		return nil, fmt.Errorf("folder of the log: %w", err)
	}
	log, err := os.OpenFile(p.logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the node's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	if info, err := log.Stat(); err == nil {
		p.from = info.Size()
	}
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), bin, p.args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = ownSession()
	p.cmd.Env = append(os.Environ(), p.env...)
	if p.tied {
		if p.stdin, err = p.cmd.StdinPipe(); err != nil {
			return nil, fmt.Errorf("start a node: %w", err)
		}
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a node: %w", err)
	}
	p.exited = make(chan struct{})
	go func() {
		defer close(p.exited)
		p.err = p.cmd.Wait()
	}()
	return &p, nil
}

// answers waits until the node's API does.
func (p *process) answers(ctx context.Context, c *client.Client, patience time.Duration) (client.Status, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the node did not answer within %s; its log is in %s", patience, p.logFile))
	defer cancel()
	var s client.Status
	err := poll(ctx, func() (bool, error) {
		select {
		case <-p.exited:
			return false, p.lastWords()
		default:
		}
		var err error
		s, err = c.Status(ctx)
		return err == nil && s.PID == p.cmd.Process.Pid, nil
	})
	return s, err
}

// poll asks until the answer is yes, ever less often, up to half a second.
func poll(ctx context.Context, ask func() (bool, error)) error {
	for wait := 10 * time.Millisecond; ; wait = min(wait*3/2, 500*time.Millisecond) {
		if ok, err := ask(); ok || err != nil {
			return err
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// maxWords bounds what is read of a dead node's log.
const maxWords = 64 << 10

// lastWords is why a node ended at once, as its log tells.
func (p *process) lastWords() error {
	text := ""
	if f, err := os.Open(p.logFile); err == nil {
		if _, err := f.Seek(p.from, io.SeekStart); err == nil {
			raw, _ := io.ReadAll(io.LimitReader(f, maxWords))
			text = string(raw)
		}
		_ = f.Close()
	}
	what := p.err
	if what == nil {
		what = errors.New("it exited")
	}
	if i := strings.LastIndex(text, "error: "); i >= 0 {
		words, remedy, _ := strings.Cut(text[i+len("error: "):], "\n")
		err := fmt.Errorf("the node did not start: %s", words)
		if _, try, ok := strings.Cut(remedy, "try: "); ok {
			return withRemedy(err, "%s", strings.TrimSpace(string(bytes.SplitN([]byte(try), []byte("\n"), 2)[0])))
		}
		return err
	}
	return withRemedy(fmt.Errorf("the node did not start: %w", what), "read %s", p.logFile)
}

// stopWait is how long a node may take to end before it is killed.
const stopWait = 30 * time.Second

// stop ends a tied node and its jobs, and waits until it is gone.
func (p *process) stop() {
	_ = p.stdin.Close()
	t := time.NewTimer(stopWait)
	defer t.Stop()
	select {
	case <-p.exited:
	case <-t.C:
		p.kill()
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
}
