package main

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
)

func specOf(t *testing.T, args ...string) (job.Spec, error) {
	t.Helper()
	var f runFlags
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.add(fs)
	if err := fs.Parse(args); err != nil {
		return job.Spec{}, err
	}
	return f.spec(fs, fs.Args())
}

func TestRunFlagsToSpec(t *testing.T) {
	t.Setenv("FROM_OUTSIDE", "yes")
	for name, c := range map[string]struct {
		args []string
		want func(*job.Spec)
	}{
		"bare":         {[]string{"img"}, func(*job.Spec) {}},
		"command":      {[]string{"img", "sh", "-c", "echo --gpus"}, func(s *job.Spec) { s.Command = []string{"sh", "-c", "echo --gpus"} }},
		"flags of its": {[]string{"--name", "n", "img", "--name", "x"}, func(s *job.Spec) { s.Name, s.Command = "n", []string{"--name", "x"} }},
		"cpus memory":  {[]string{"--cpus", "1.5", "--memory", "2GB", "--disk", "1GB", "img"}, func(s *job.Spec) { s.CPUMillis, s.Memory, s.Disk = 1500, 2e9, 1e9 }},
		"gpus":         {[]string{"--gpus", "rtx4090:2", "img"}, func(s *job.Spec) { s.GPUs = job.GPUWish{Count: 2, Any: []string{"rtx4090"}} }},
		"gpu count":    {[]string{"--gpus", "1", "img"}, func(s *job.Spec) { s.GPUs = job.GPUWish{Count: 1} }},
		"gpus all":     {[]string{"--gpus", "all", "img"}, func(s *job.Spec) { s.GPUs.All = true }},
		"vram":         {[]string{"--gpus", "vram>=24GB", "img"}, func(s *job.Spec) { s.GPUs = job.GPUWish{Count: 1, VRAM: 24e9} }},
		"env": {[]string{"-e", "A=b=c", "--env", "FROM_OUTSIDE", "-e", "NOT_THERE", "-e", "EMPTY=", "img"}, func(s *job.Spec) {
			s.Env = map[string]string{"A": "b=c", "FROM_OUTSIDE": "yes", "EMPTY": ""}
		}},
		"binds": {[]string{"--in", "./a:/in", "--in", "cid:bafy:/data", "--out", "/out:./o", "--out", "/keep", "img"}, func(s *job.Spec) {
			s.Inputs = []job.InputSpec{{From: "./a", To: "/in"}, {From: "cid:bafy", To: "/data"}}
			s.Outputs = []job.OutputSpec{{From: "/out", To: "./o"}, {From: "/keep"}}
		}},
		"secrets": {[]string{"--secret", "TOKEN", "--secret", "db.key=./a=b", "--secret", "IN=-", "img"}, func(s *job.Spec) {
			s.Secrets = []job.SecretSpec{{Name: "TOKEN"}, {Name: "db.key", File: "./a=b"}, {Name: "IN", File: "-"}}
		}},
		"array": {[]string{"--array", "1-240:4", "--parallel", "20", "--max-failed", "5", "img"}, func(s *job.Spec) {
			s.Array = &job.Array{First: 1, Last: 240, Chunk: 4, Parallel: 20, MaxFailed: 5}
		}},
		"retries": {[]string{"--retries", "0", "img"}, func(s *job.Spec) { s.Retry = job.RetrySpec{Max: 0, Given: true, AvoidFailed: true} }},
		"timeout": {[]string{"--timeout", "90m", "--fetch-timeout", "1m", "img"}, func(s *job.Spec) { s.Limits.Run, s.Limits.Fetch = 90*time.Minute, time.Minute }},
		"pay": {[]string{"--max-hourly", "0.60", "--budget", "1.00", "img"}, func(s *job.Spec) {
			s.Pay = job.PaySpec{MaxHourly: ledger.Units("usd", 600_000), Budget: ledger.Units("usd", 1_000_000)}
		}},
		"ready": {[]string{"-p", "8080:80", "--ready-http", "/health", "img"}, func(s *job.Spec) {
			s.Ports, s.Ready = []job.PortSpec{{Local: 8080, Remote: 80}}, &job.ReadySpec{HTTP: "/health", Port: 80, Within: 5 * time.Minute}
		}},
		"idle": {[]string{"-p", "80", "--idle-stop", "10m", "img"}, func(s *job.Spec) { s.Ports, s.IdleStop = []job.PortSpec{{Remote: 80}}, 10*time.Minute }},
		"ready port": {[]string{"--ready-http", "/up", "--ready-port", "81", "--ready-within", "2m", "img"}, func(s *job.Spec) {
			s.Ready = &job.ReadySpec{HTTP: "/up", Port: 81, Within: 2 * time.Minute}
		}},
		"place": {[]string{"--on", "12D3KooW", "--workdir", "/w", "--network", "outbound", "img"}, func(s *job.Spec) { s.On, s.Workdir, s.Network = "12D3KooW", "/w", "outbound" }},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := specOf(t, c.args...)
			if err != nil {
				t.Fatal(err)
			}
			want := job.Spec{Image: "img", Command: []string{}}
			c.want(&want)
			want = want.WithDefaults()
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestRunFlagsRefused(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--gpus", "rtx9999", "img"}, "rtx9999"},
		{[]string{"--memory", "lots", "img"}, "--memory lots"},
		{[]string{"--ready-http", "/health", "img"}, "ready.port: missing"},
		{[]string{"--ready-http", "health", "-p", "80", "img"}, "begins with a single /"},
		{[]string{"--idle-stop", "10m", "img"}, "without ports"},
		{[]string{"--idle-stop", "1s", "-p", "80", "img"}, "is not between 10s"},
		{[]string{"--ready-within", "1m", "img"}, "give --ready-http too"},
		{[]string{"--ready-http", "/", "--ready-within", "1h", "-p", "80", "img"}, "is not between"},
		{[]string{"--cpus", "-1", "img"}, "--cpus -1"},
		{[]string{"--max-hourly", "free", "img"}, "--max-hourly free"},
		{[]string{"--budget", "0.0000001", "img"}, "smallest unit"},
		{[]string{"--array", "x", "img"}, "--array x"},
		{[]string{"--in", "./a", "img"}, "HOST:CONTAINER"},
		{[]string{"--in", "./a:b", "img"}, "absolute"},
		{[]string{"--out", ":./o", "img"}, "CONTAINER:HOST"},
		{[]string{"-e", "=x", "img"}, "KEY=VALUE"},
		{[]string{"--secret", "../x", "img"}, "want NAME or NAME=FILE"},
		{[]string{"--secret", "=x", "img"}, "want NAME or NAME=FILE"},
		{[]string{"--secret", "A=", "img"}, "--secret A=: want the file"},
		{[]string{"--secret", "A", "--secret", "A=f", "img"}, `"A" is used twice`},
		{[]string{"--secret", "A", "--out", "/run", "img"}, "they lie in /run/secrets"},
		{[]string{"--network", "host", "img"}, "network"},
		{[]string{"--private", "--in", "cid:bafy:/in", "img"}, "inputs[0].from"},
		{[]string{"--parallel", "2", "img"}, "--array"},
		{[]string{"--retries", "1000", "img"}, "retry"},
	} {
		_, err := specOf(t, c.args...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: error %v, want %q", c.args, err, c.want)
			continue
		}
		if v := judge(err); v.Code != exitUsage {
			t.Errorf("%q: code %d", c.args, v.Code)
		}
	}
}
