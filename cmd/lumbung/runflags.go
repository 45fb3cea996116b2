package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/node/client"
)

// runFlags are the flags that describe a job, as they were typed.
type runFlags struct {
	name, gpus, cpus, memory, disk string
	env, in, out                   []string
	cache, ports, secrets          []string
	stream                         bool
	array                          string
	parallel, maxFailed, retries   int
	timeout, fetchTimeout          time.Duration
	maxHourly, budget              string
	on, workdir, network           string
	private                        bool
	readyHTTP                      string
	readyPort                      uint16
	readyWithin, idleStop          time.Duration
	checkpoint                     time.Duration
}

func (f *runFlags) add(fs *pflag.FlagSet) {
	fs.SetInterspersed(false) // what follows the image is the job's
	fs.StringVar(&f.name, "name", "", "`name` of the job")
	fs.StringVar(&f.gpus, "gpus", "", "`wish`: 1, all, rtx4090:2, 'vram>=24GB'")
	fs.StringVar(&f.cpus, "cpus", "", "`cores` for a task (default 1)")
	fs.StringVar(&f.memory, "memory", "", "memory for a task, a `size` (default 1GB)")
	fs.StringVar(&f.disk, "disk", "", "room for what a task writes, a `size` (default 10GB)")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "`KEY=VALUE` in the environment; KEY alone passes your own on")
	fs.StringArrayVar(&f.secrets, "secret", nil, "`NAME[=FILE]`: a file in /run/secrets, from your variable of that name, from FILE or, with -, from stdin")
	fs.StringArrayVar(&f.in, "in", nil, "`HOST:CONTAINER`: a file, folder or CID that appears inside")
	fs.StringArrayVar(&f.out, "out", nil, "`CONTAINER:HOST`: a folder inside that comes back")
	fs.BoolVar(&f.stream, "stream", false, "bring the outputs while the job runs too, every few seconds")
	fs.StringArrayVar(&f.cache, "cache", nil, "`KEY:PATH`: a folder inside that stays on its provider for your next jobs; cid:CID:PATH is content to read")
	fs.StringArrayVarP(&f.ports, "publish", "p", nil, "`LOCAL:REMOTE`: a port of this machine that leads to one of the container")
	fs.StringVar(&f.readyHTTP, "ready-http", "", "`path`: bill only from when GET of it is answered, such as /health")
	fs.Uint16Var(&f.readyPort, "ready-port", 0, "`port` of the container for --ready-http (default the one of -p)")
	fs.DurationVar(&f.readyWithin, "ready-within", 0, "`time` a service may take to be ready (default 5m, at most 15m)")
	fs.DurationVar(&f.idleStop, "idle-stop", 0, "`time` without a connection to its ports after which a service has done its work")
	fs.StringVar(&f.array, "array", "", "`range`: tasks over 1-240, or 1-240:4 for four numbers each")
	fs.IntVar(&f.parallel, "parallel", 0, "most `tasks` at once (default all)")
	fs.IntVar(&f.maxFailed, "max-failed", 0, "failed `tasks` that the job bears")
	fs.IntVar(&f.retries, "retries", 0, "`times` to try a failed task again, elsewhere")
	fs.DurationVar(&f.timeout, "timeout", 0, "`time` a task may run (default 1h)")
	fs.DurationVar(&f.fetchTimeout, "fetch-timeout", 0, "`time` a provider may take to fetch image and inputs (default 30m)")
	fs.StringVar(&f.maxHourly, "max-hourly", "", "most `money` for a task and hour, such as 0.60")
	fs.StringVar(&f.budget, "budget", "", "most `money` for the whole job")
	fs.StringVar(&f.on, "on", "", "run on this `peer` alone")
	fs.StringVar(&f.workdir, "workdir", "", "`folder` inside to start in")
	fs.BoolVar(&f.private, "private", false, "encrypt inputs and outputs, for the provider that gets the job alone")
	fs.DurationVar(&f.checkpoint, "checkpoint-every", 0, "`time` between savings of a task's state, so that another provider can go on from there (default never)")
	fs.StringVar(&f.network, "network", "", "`reach` of a task: none, or outbound, the public internet, where the provider allows it (default none)")
}

// spec is the job that the flags and arguments describe.
func (f *runFlags) spec(fs *pflag.FlagSet, args []string) (job.Spec, error) {
	s := job.Spec{
		Name: f.name, Image: args[0], Command: args[1:], Workdir: f.workdir, Network: f.network, On: f.on, Private: f.private,
		Checkpoint: job.CheckpointSpec{Every: f.checkpoint},
		Limits:     job.LimitSpec{Run: f.timeout, Fetch: f.fetchTimeout},
	}
	var err error
	parse := func(flag, text string, fn func() error) {
		if err != nil || text == "" {
			return
		}
		if e := fn(); e != nil {
			err = usageErrf("--%s %s: %w", flag, text, e)
		}
	}
	parse("gpus", f.gpus, func() (e error) { s.GPUs, e = job.ParseGPUs(f.gpus); return e })
	parse("cpus", f.cpus, func() (e error) { s.CPUMillis, e = job.ParseCPUs(f.cpus); return e })
	parse("memory", f.memory, func() (e error) { s.Memory, e = job.ParseSize(f.memory); return e })
	parse("disk", f.disk, func() (e error) { s.Disk, e = job.ParseSize(f.disk); return e })
	parse("max-hourly", f.maxHourly, func() (e error) { s.Pay.MaxHourly, e = ledger.ParseAmount(job.Asset, f.maxHourly); return e })
	parse("budget", f.budget, func() (e error) { s.Pay.Budget, e = ledger.ParseAmount(job.Asset, f.budget); return e })
	parse("array", f.array, func() error { return f.arrayOf(&s) })
	if err != nil {
		return s, err
	}
	if err := f.binds(&s); err != nil {
		return s, err
	}
	if fs.Changed("retries") {
		s.Retry = job.RetrySpec{Max: f.retries, Given: true, AvoidFailed: true}
	}
	if s.Array == nil && (fs.Changed("parallel") || fs.Changed("max-failed")) {
		return s, usageErrf("--parallel and --max-failed are for arrays: give --array too")
	}
	if f.readyHTTP == "" && (fs.Changed("ready-port") || fs.Changed("ready-within")) {
		return s, usageErrf("--ready-port and --ready-within are for a probe: give --ready-http too, such as --ready-http /health")
	}
	if f.readyHTTP != "" {
		s.Ready = &job.ReadySpec{HTTP: f.readyHTTP, Port: f.readyPort, Within: f.readyWithin}
	}
	s.IdleStop = f.idleStop
	s = s.WithDefaults()
	if err := s.Validate(); err != nil {
		return s, usageErrf("%w", err)
	}
	return s, nil
}

func (f *runFlags) arrayOf(s *job.Spec) error {
	first, last, chunk, err := job.ParseRange(f.array)
	if err != nil {
		return err
	}
	s.Array = &job.Array{First: first, Last: last, Chunk: chunk, Parallel: f.parallel, MaxFailed: f.maxFailed}
	return nil
}

// binds reads -e, --secret, --in and --out.
func (f *runFlags) binds(s *job.Spec) error {
	for _, kv := range f.env {
		name, v, given := strings.Cut(kv, "=")
		if name == "" {
			return usageErrf("-e %s: want KEY=VALUE", kv)
		}
		if !given {
			if v, given = os.LookupEnv(name); !given {
				continue
			}
		}
		if s.Env == nil {
			s.Env = map[string]string{}
		}
		s.Env[name] = v
	}
	for _, text := range f.secrets {
		secret, err := parseSecret(text)
		if err != nil {
			return err
		}
		s.Secrets = append(s.Secrets, secret)
	}
	for _, in := range f.in {
		i := strings.LastIndexByte(in, ':')
		if i < 1 || i == len(in)-1 {
			return usageErrf("--in %s: want HOST:CONTAINER, such as ./project:/in", in)
		}
		s.Inputs = append(s.Inputs, job.InputSpec{From: in[:i], To: in[i+1:]})
	}
	for _, out := range f.out {
		from, to, _ := strings.Cut(out, ":")
		if from == "" {
			return usageErrf("--out %s: want CONTAINER:HOST, such as /out:./frames", out)
		}
		s.Outputs = append(s.Outputs, job.OutputSpec{From: from, To: to, Stream: f.stream})
	}
	if f.stream && len(s.Outputs) == 0 {
		return usageErrf("--stream is for outputs: give --out too")
	}
	for _, text := range f.ports {
		p, err := job.ParsePort(text)
		if err != nil {
			return usageErrf("-p %w", err)
		}
		s.Ports = append(s.Ports, p)
	}
	for _, c := range f.cache {
		i := strings.LastIndexByte(c, ':')
		if i < 1 || i == len(c)-1 {
			return usageErrf("--cache %s: want KEY:PATH, such as weights:/models", c)
		}
		s.Caches = append(s.Caches, job.CacheSpec{Key: c[:i], To: c[i+1:]})
	}
	return nil
}

// request is a job to submit, described by flags.
func (f *runFlags) request(cmd *cobra.Command, args []string) (client.SubmitRequest, error) {
	s, err := f.spec(cmd.Flags(), args)
	if err != nil {
		var u *usageError
		if errors.As(err, &u) && u.remedy == "" {
			u.remedy = helpLine(cmd)
		}
		return client.SubmitRequest{}, err
	}
	return submission(s, ".")
}

// fileRequest is a job to submit, described by a file.
func fileRequest(name string) (client.SubmitRequest, error) {
	s, err := job.ParseFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return client.SubmitRequest{}, &usageError{err: err, remedy: "check the path; `lumbung run --help` tells how to do without a file"}
	}
	if err != nil {
		return client.SubmitRequest{}, err
	}
	return submission(s, filepath.Dir(name))
}

// submission is a request with the folder that its paths are of, and a key that
// lets it be repeated without making a second job.
func submission(s job.Spec, dir string) (client.SubmitRequest, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return client.SubmitRequest{}, fmt.Errorf("the folder of the job: %w", err)
	}
	return client.SubmitRequest{Spec: s, Dir: abs, Key: rand.Text()}, nil
}
