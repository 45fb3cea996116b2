package job

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"

	"github.com/goccy/go-yaml/ast"

	"github.com/lumbung-net/lumbung/job/gpu"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

// maxFile bounds a job file, in bytes.
const maxFile = 1 << 20

// ParseFile reads a job file. Relative paths in it stay as written; they are of
// the file's folder. An error of what it says wraps ErrSpec and names the line.
func ParseFile(path string) (Spec, error) {
	f, err := os.Open(path)
	if err != nil {
		return Spec{}, fmt.Errorf("job file: %w", err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return Spec{}, fmt.Errorf("job file: %w", err)
	}
	return Parse(path, data)
}

// Parse reads the text of a job file; name is what errors call it. Defaults are
// filled in.
func Parse(name string, data []byte) (Spec, error) {
	f := specFile{name: name}
	root, err := f.load(data)
	if err != nil {
		return Spec{}, err
	}
	s, err := f.spec(root)
	if err != nil {
		return Spec{}, err
	}
	s = s.WithDefaults()
	if err := s.Validate(); err != nil {
		return Spec{}, fmt.Errorf("%s: %w", name, err)
	}
	if _, _, err := Expand(s, "", 0); err != nil {
		return Spec{}, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

// laterKeys belong to versions to come.
var laterKeys = []string{"nodes"}

func (f *specFile) spec(root ast.Node) (Spec, error) {
	var s Spec
	version, stream := false, false
	err := f.mapping(root, "", keys{
		"version": func(n ast.Node, at string) error {
			v, err := f.count(n, at)
			if err == nil && v != 1 {
				return f.errAt(n, at, "%d is not a version of job files that this lumbung reads; write 1", v)
			}
			version = true
			return err
		},
		"name":    f.text(&s.Name),
		"image":   f.text(&s.Image),
		"command": func(n ast.Node, at string) (err error) { s.Command, err = f.command(n, at); return err },
		"workdir": f.text(&s.Workdir),
		"array":   func(n ast.Node, at string) (err error) { s.Array, err = f.array(n, at); return err },
		"gpus":    func(n ast.Node, at string) (err error) { s.GPUs, err = f.gpus(n, at); return err },
		"cpus":    scalar(f, &s.CPUMillis, ParseCPUs),
		"memory":  scalar(f, &s.Memory, positiveSize),
		"disk":    scalar(f, &s.Disk, positiveSize),
		"env":     func(n ast.Node, at string) (err error) { s.Env, err = f.env(n, at); return err },
		"inputs": func(n ast.Node, at string) error {
			return f.list(n, at, func(n ast.Node, at string) error {
				var in InputSpec
				err := f.mapping(n, at, keys{"from": f.text(&in.From), "to": f.text(&in.To)})
				s.Inputs = append(s.Inputs, in)
				return err
			})
		},
		"outputs": func(n ast.Node, at string) error {
			return f.list(n, at, func(n ast.Node, at string) error {
				var out OutputSpec
				err := f.mapping(n, at, keys{"from": f.text(&out.From), "to": f.text(&out.To), "stream": f.boolean(&out.Stream)})
				s.Outputs = append(s.Outputs, out)
				return err
			})
		},
		"cache": func(n ast.Node, at string) error {
			return f.list(n, at, func(n ast.Node, at string) error {
				var c CacheSpec
				err := f.mapping(n, at, keys{"key": f.text(&c.Key), "to": f.text(&c.To)})
				s.Caches = append(s.Caches, c)
				return err
			})
		},
		"secrets":   func(n ast.Node, at string) (err error) { s.Secrets, err = f.secrets(n, at); return err },
		"ports":     func(n ast.Node, at string) (err error) { s.Ports, err = f.ports(n, at); return err },
		"ready":     func(n ast.Node, at string) (err error) { s.Ready, err = f.ready(n, at); return err },
		"idle_stop": scalar(f, &s.IdleStop, ParseDuration),
		"stream":    f.boolean(&stream),
		"private":   f.boolean(&s.Private),
		"checkpoint": func(n ast.Node, at string) error {
			return f.mapping(n, at, keys{"every": scalar(f, &s.Checkpoint.Every, ParseDuration)})
		},
		"limits":  func(n ast.Node, at string) error { return f.limits(n, at, &s.Limits) },
		"pay":     func(n ast.Node, at string) error { return f.pay(n, at, &s.Pay) },
		"retry":   func(n ast.Node, at string) error { return f.retry(n, at, &s.Retry) },
		"network": f.text(&s.Network),
	})
	if err == nil && !version {
		err = f.errAt(root, "version", "missing; begin the file with `version: 1`")
	}
	for i := range s.Outputs {
		s.Outputs[i].Stream = s.Outputs[i].Stream || stream
	}
	return s, err
}

func (f *specFile) command(n ast.Node, at string) ([]string, error) {
	if list, ok := n.(*ast.SequenceNode); ok {
		out := make([]string, 0, len(list.Values))
		for i, v := range list.Values {
			word, err := f.scalarText(v, fmt.Sprintf("%s[%d]", at, i))
			if err != nil {
				return nil, err
			}
			out = append(out, word)
		}
		return out, nil
	}
	line, err := f.scalarText(n, at)
	if err != nil {
		return nil, err
	}
	words, err := splitWords(line)
	if err != nil {
		return nil, f.errAt(n, at, "%w", err)
	}
	return words, nil
}

func (f *specFile) array(n ast.Node, at string) (*Array, error) {
	a := &Array{}
	ranged := false
	readRange := func(n ast.Node, at string) error {
		text, err := f.scalarText(n, at)
		if err != nil {
			return err
		}
		var chunk int
		if a.First, a.Last, chunk, err = ParseRange(text); err != nil {
			return f.errAt(n, at, "%w", err)
		}
		if chunk != 0 && a.Chunk != 0 {
			return f.errAt(n, at, "%q gives a chunk, and so does %s.chunk; keep one", text, "array")
		}
		if chunk != 0 {
			a.Chunk = chunk
		}
		ranged = true
		return nil
	}
	if isScalar(n) {
		return a, readRange(n, at)
	}
	err := f.mapping(n, at, keys{
		"range": readRange,
		"chunk": func(n ast.Node, at string) error {
			if a.Chunk != 0 {
				return f.errAt(n, at, "the range gives a chunk too; keep one")
			}
			return f.atLeast(1, &a.Chunk)(n, at)
		},
		"parallel":   f.atLeast(1, &a.Parallel),
		"max_failed": f.atLeast(0, &a.MaxFailed),
	})
	if err == nil && !ranged {
		err = f.errAt(n, at+".range", "missing; write one such as 1-240")
	}
	return a, err
}

func (f *specFile) gpus(n ast.Node, at string) (GPUWish, error) {
	if isScalar(n) {
		var w GPUWish
		return w, scalar(f, &w, ParseGPUs)(n, at)
	}
	w := GPUWish{Count: 1}
	err := f.mapping(n, at, keys{
		"count": func(n ast.Node, at string) error {
			text, err := f.scalarText(n, at)
			if err == nil && !w.parseCount(text) {
				return f.errAt(n, at, "%q is neither a number up to %d nor all", text, maxGPUCount)
			}
			return err
		},
		"any": func(n ast.Node, at string) error {
			return f.list(n, at, func(n ast.Node, at string) error {
				model, err := f.scalarText(n, at)
				if err != nil {
					return err
				}
				if err := knownModel(model); err != nil {
					return f.errAt(n, at, "%w", err)
				}
				if !slices.Contains(w.Any, model) {
					w.Any = append(w.Any, model)
				}
				return nil
			})
		},
		"vram": scalar(f, &w.VRAM, positiveSize),
		"cuda": scalar(f, &w.CUDA, func(text string) (string, error) {
			if !gpu.IsVersion(text) {
				return "", fmt.Errorf("%q is no version; write one such as \"12.4\"", text)
			}
			return text, nil
		}),
		"capabilities": func(n ast.Node, at string) error {
			return f.list(n, at, func(n ast.Node, at string) error {
				name, err := f.scalarText(n, at)
				if err != nil {
					return err
				}
				if err := knownCapability(name); err != nil {
					return f.errAt(n, at, "%w", err)
				}
				if !slices.Contains(w.Capabilities, name) {
					w.Capabilities = append(w.Capabilities, name)
				}
				return nil
			})
		},
	})
	return w, err
}

func (f *specFile) env(n ast.Node, at string) (map[string]string, error) {
	env := map[string]string{}
	return env, f.entries(n, at, func(name string, n ast.Node, at string) error {
		value, err := f.scalarText(n, at)
		env[name] = value
		return err
	})
}

// pairs reads a list of {from, to}.
func (f *specFile) limits(n ast.Node, at string, l *LimitSpec) error {
	return f.mapping(n, at, keys{
		"fetch":  scalar(f, &l.Fetch, ParseDuration),
		"run":    scalar(f, &l.Run, ParseDuration),
		"logs":   scalar(f, &l.Logs, positiveSize),
		"output": scalar(f, &l.Output, positiveSize),
		"net":    scalar(f, &l.Net, positiveSize),
		"pids": func(n ast.Node, at string) error {
			var pids int
			err := f.atLeast(1, &pids)(n, at)
			if err == nil && pids > 1<<22 {
				return f.errAt(n, at, "%d is more processes than the %d there can be", pids, 1<<22)
			}
			l.Pids = uint32(pids)
			return err
		},
		"open_files": func(n ast.Node, at string) error {
			var files int
			err := f.atLeast(1, &files)(n, at)
			if err == nil && (files < protocol.MinOpenFiles || files > protocol.MaxOpenFiles) {
				return f.errAt(n, at, "%d is not between %d and %d", files, protocol.MinOpenFiles, protocol.MaxOpenFiles)
			}
			l.OpenFiles = uint32(files)
			return err
		},
	})
}

func (f *specFile) pay(n ast.Node, at string, p *PaySpec) error {
	return f.mapping(n, at, keys{
		"max_hourly": scalar(f, &p.MaxHourly, positiveAmount),
		"budget":     scalar(f, &p.Budget, positiveAmount),
	})
}

func (f *specFile) retry(n ast.Node, at string, r *RetrySpec) error {
	r.AvoidFailed = true
	err := f.mapping(n, at, keys{
		"max": func(n ast.Node, at string) error {
			r.Given = true
			return f.atLeast(0, &r.Max)(n, at)
		},
		"avoid_failed_provider": f.boolean(&r.AvoidFailed),
	})
	if err == nil && !r.AvoidFailed && !r.Given {
		return f.errAt(n, at, "give max too, so that it is clear how often a task is tried again")
	}
	return err
}

// scalar reads a value that has a grammar of its own.
func scalar[T any](f *specFile, to *T, parse func(string) (T, error)) reader {
	return func(n ast.Node, at string) error {
		text, err := f.scalarText(n, at)
		if err != nil {
			return err
		}
		if *to, err = parse(text); err != nil {
			return f.errAt(n, at, "%w", err)
		}
		return nil
	}
}

func positiveSize(s string) (uint64, error) {
	n, err := ParseSize(s)
	if err == nil && n == 0 {
		return 0, errors.New("it must be above 0; leave it out for the default")
	}
	return n, err
}

func positiveAmount(s string) (ledger.Amount, error) {
	a, err := ledger.ParseAmount(Asset, s)
	if err == nil && a.IsZero() {
		return a, errors.New("it must be above 0; leave it out for no limit")
	}
	return a, err
}

func (f *specFile) text(to *string) reader {
	return func(n ast.Node, at string) (err error) {
		*to, err = f.scalarText(n, at)
		return err
	}
}

func (f *specFile) count(n ast.Node, at string) (int, error) {
	text, err := f.scalarText(n, at)
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return 0, f.errAt(n, at, "%q is no whole number", text)
	}
	return int(v), nil
}

func (f *specFile) atLeast(least int, to *int) reader {
	return func(n ast.Node, at string) error {
		v, err := f.count(n, at)
		if err == nil && v < least {
			return f.errAt(n, at, "%d is below %d", v, least)
		}
		*to = v
		return err
	}
}
