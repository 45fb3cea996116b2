package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode/utf8"
)

// console is the terminal, or what stands in its place: results go to out,
// everything else to err. On a terminal err may end in a live line, which is
// taken away before anything else is written and drawn again afterwards.
type console struct {
	mu             sync.Mutex
	out, err       io.Writer
	outTTY, errTTY bool
	colour         bool
	width          func() int // columns of err
	outWidth       func() int // columns of out, where it is a terminal
	live           string
	broken         bool // the last job output did not end its line
}

// Notef writes a line for the person who watches.
func (c *console) Notef(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clear()
	if c.broken {
		c.broken = false
		_, _ = io.WriteString(c.err, "\n")
	}
	_, _ = fmt.Fprintf(c.err, strings.TrimSuffix(format, "\n")+"\n", args...)
	c.draw()
}

// Raw writes a job's own output, to stdout or stderr.
func (c *console) Raw(stderr bool, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clear()
	w := c.out
	if stderr {
		w = c.err
	}
	_, err := w.Write(p)
	if c.outTTY && c.errTTY {
		c.broken = p[len(p)-1] != '\n'
	}
	if !c.broken {
		c.draw()
	}
	if err != nil {
		return fmt.Errorf("writing the job's output: %w", err)
	}
	return nil
}

// Live sets the live line; an empty one takes it away. Only terminals have it.
func (c *console) Live(line string) {
	if !c.errTTY {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken && line != "" {
		return
	}
	c.clear()
	c.live = cut(line, c.width()-1)
	c.draw()
}

func (c *console) clear() {
	if c.live != "" {
		_, _ = io.WriteString(c.err, "\r\x1b[K")
	}
}

func (c *console) draw() {
	if c.live != "" {
		_, _ = io.WriteString(c.err, c.live)
	}
}

func cut(s string, width int) string {
	if width < 1 || utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}

func (c *console) paint(code, s string) string {
	if !c.colour {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (c *console) red(s string) string    { return c.paint("31", s) }
func (c *console) green(s string) string  { return c.paint("32", s) }
func (c *console) yellow(s string) string { return c.paint("33", s) }
func (c *console) dim(s string) string    { return c.paint("2", s) }
