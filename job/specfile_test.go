package job

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

const shot = `version: 1
name: shot042
image: oci:./blender            # docker-archive:FILE, oci:DIR, docker://ref, cid:bafy…
command: [blender, -b, /in/shot.blend, -o, /out/f_####, -s, "${LUMBUNG_FIRST}", -e, "${LUMBUNG_LAST}", -a]
array: {range: 1-240, chunk: 4, parallel: 20, max_failed: 5}
gpus: {count: 1, any: [rtx4090, rtx3090], vram: 12GB}
cpus: 4
memory: 16GB
env: {SEED: "7"}
inputs:  [{from: ./project, to: /in}]
outputs: [{from: /out, to: ./frames}]
limits:  {fetch: 30m, run: 1h}
pay:     {max_hourly: 0.60, budget: 12}
retry:   {max: 2, avoid_failed_provider: true}
network: none                   # none (default) | outbound
`

func TestContentKeysAreRead(t *testing.T) {
	s, err := Parse("j.yaml", []byte("version: 1\nimage: x\ncache: [{key: weights, to: /w}]\n"+
		"outputs: [{from: /a, stream: true}, {from: /b}]\n"))
	if err != nil || !s.Outputs[0].Stream || s.Outputs[1].Stream || s.Caches[0] != (CacheSpec{"weights", "/w"}) {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := Parse("j.yaml", []byte("version: 1\nimage: x\nstream: true\noutputs: [{from: /a}]\n")); err != nil || !s.Outputs[0].Stream {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := Parse("j.yaml", []byte("version: 1\nimage: x\nprivate: true\noutputs: [{from: /a}]\n")); err != nil || !s.Private {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := Parse("j.yaml", []byte("version: 1\nimage: x\ncheckpoint: {every: 10m}\n")); err != nil || s.Checkpoint.Every != 10*time.Minute {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"checkpoint: {every: 10ms}", "checkpoint: {every: 1m}\ngpus: 1", "checkpoint: {each: 1m}", "checkpoint: 1m", "private: true\nstream: true\noutputs: [{from: /a}]", "private: true\ninputs: [{from: 'cid:bafy', to: /a}]", "cache: [{key: ../x, to: /w}]", "cache: [{key: 'cid:nonsense', to: /w}]", "cache: [{key: a, to: w}]", "cache: [{key: a, to: /w}, {key: b, to: /w}]"} {
		if _, err := Parse("j.yaml", []byte("version: 1\nimage: x\n"+bad+"\n")); !errors.Is(err, ErrSpec) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestSecretsOfAJobFile(t *testing.T) {
	s, err := Parse("j.yaml", []byte("version: 1\nimage: x\nsecrets: [TOKEN, {name: db.key, file: ./db.key}, {name: 7}]\ninputs: [{from: a, to: /run/other}]\n"))
	if want := []SecretSpec{{Name: "TOKEN"}, {"db.key", "./db.key"}, {Name: "7"}}; err != nil || !slices.Equal(s.Secrets, want) {
		t.Errorf("%+v, %v", s.Secrets, err)
	}
	raw, err := json.Marshal(s)
	if err != nil || !strings.Contains(string(raw), `"secrets":[{"name":"TOKEN"},{"name":"db.key"},{"name":"7"}]`) {
		t.Errorf("%s %v", raw, err)
	}
	many := make([]string, protocol.MaxSecrets+1)
	for i := range many {
		many[i] = fmt.Sprint("s", i)
	}
	if _, err := Parse("j.yaml", []byte("version: 1\nimage: x\nsecrets: ["+strings.Join(many, ", ")+"]\n")); !errors.Is(err, ErrSpec) {
		t.Errorf("%v", err)
	}
}

func TestServiceKeysAreRead(t *testing.T) {
	const head = "version: 1\nimage: x\n"
	for text, want := range map[string]ReadySpec{
		"ports: [8080:80]\nready: {http: /health}":                          {"/health", 80, DefaultReadyWithin},
		"ports: [8080:80, 8081:80]\nready: {http: /health, within: 90s}":    {"/health", 80, 90 * time.Second},
		"ports: [8080:80, 443]\nready: {http: '/up?a=b', port: 443}":        {"/up?a=b", 443, DefaultReadyWithin},
		"array: 1-3\nready:\n  http: /\n  port: 8080\n  within: 15m":        {"/", 8080, MaxReadyWithin},
		"ports: [80]\nready: {http: /health, port: 9000, within: 1s}":       {"/health", 9000, time.Second},
		"ports: [{local: 1, remote: 80}]\nready: {http: /health, port: 80}": {"/health", 80, DefaultReadyWithin},
	} {
		s, err := Parse("j.yaml", []byte(head+text+"\n"))
		if err != nil || s.Ready == nil || *s.Ready != want {
			t.Errorf("%s: %+v, %v", text, s.Ready, err)
			continue
		}
		task, err := wireTask(&Job{ID: "j1", Spec: s}, 0)
		if r := task.GetReady(); err != nil || r.GetHttp() != want.HTTP || r.GetPort() != uint32(want.Port) || r.GetWithinMs() != want.Within.Milliseconds() {
			t.Errorf("%s: told as %v, %v", text, r, err)
		}
	}
	s, err := Parse("j.yaml", []byte(head+"ports: [80]\nidle_stop: 10m\n"))
	if task, e := wireTask(&Job{ID: "j1", Spec: s}, 0); err != nil || e != nil || s.IdleStop != 10*time.Minute || task.GetIdleStopMs() != 600_000 {
		t.Errorf("%+v, told as %v; %v, %v", s, task, err, e)
	}
	for text, want := range map[string]string{
		"ready: {http: /health}":                    "ready.port: missing",
		"ports: [80, 81]\nready: {http: /health}":   "ready.port: missing",
		"ready: {port: 80}":                         "ready.http: probe path",
		"ready: {http: health, port: 80}":           "begins with a single /",
		"ready: {http: /a b, port: 80}":             "without blanks",
		"ready: {http: /a, port: 80, within: 16m}":  "is not between 1s and 15m",
		"ready: {http: /a, port: 80, within: 20ms}": "is not between 1s and 15m",
		"ready: {http: /a, port: 70000}":            "ready.port: \"70000\" is no port",
		"ready: {http: /a, port: 80, every: 2s}":    `unknown key "ready.every"`,
		"idle_stop: 5m":                             "idle_stop: without ports",
		"ports: [80]\nidle_stop: 9s":                "is not between 10s and 400d",
		"ports: [80]\nidle_stop: soon":              `idle_stop: "soon" is no duration`,
		"ready: /health":                            "ready: want keys with values",
	} {
		if s, err := Parse("j.yaml", []byte(head+text+"\n")); !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v", text, s.Ready, err)
		}
	}
}

func TestTheJobFileOfTheManualIsRead(t *testing.T) {
	want := Spec{
		Name: "shot042", Image: "oci:./blender",
		Command: []string{"blender", "-b", "/in/shot.blend", "-o", "/out/f_####", "-s", "${LUMBUNG_FIRST}", "-e", "${LUMBUNG_LAST}", "-a"},
		Array:   &Array{First: 1, Last: 240, Chunk: 4, Parallel: 20, MaxFailed: 5},
		GPUs:    GPUWish{Count: 1, Any: []string{"rtx4090", "rtx3090"}, VRAM: 12e9}, CPUMillis: 4000, Memory: 16e9, Disk: DefaultDisk,
		Env: map[string]string{"SEED": "7"}, Inputs: []InputSpec{{"./project", "/in"}}, Outputs: []OutputSpec{{From: "/out", To: "./frames"}},
		Limits:  LimitSpec{Fetch: 30 * time.Minute, Run: time.Hour, Logs: DefaultLogBytes, Output: DefaultOutput, Pids: DefaultPids},
		Pay:     PaySpec{MaxHourly: ledger.Units(Asset, 600_000), Budget: ledger.Units(Asset, 12_000_000)},
		Retry:   RetrySpec{Max: 2, Given: true, AvoidFailed: true},
		Network: "none",
	}
	path := filepath.Join(t.TempDir(), "shot.yaml")
	if err := os.WriteFile(path, []byte(shot), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := ParseFile(path)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v\nwant %+v", got, err, want)
	}
	if _, err := ParseFile(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestOtherWaysToWriteAJobFile(t *testing.T) {
	for text, check := range map[string]func(Spec) bool{
		"command: sh -c 'echo \"hello there\" $HOME' a\\ b": func(s Spec) bool {
			return reflect.DeepEqual(s.Command, []string{"sh", "-c", `echo "hello there" $HOME`, "a b"})
		},
		"command:\n  - run\n  - 7\n  - 0.50\n  - true\n  - no": func(s Spec) bool {
			return reflect.DeepEqual(s.Command, []string{"run", "7", "0.50", "true", "no"})
		},
		"command: |\n  python3 train.py\n    --epochs 3\n": func(s Spec) bool {
			return reflect.DeepEqual(s.Command, []string{"python3", "train.py", "--epochs", "3"})
		},
		"array: 1-10:3":                  func(s Spec) bool { return *s.Array == Array{First: 1, Last: 10, Chunk: 3} && s.Tasks() == 4 },
		"array: {range: 5}":              func(s Spec) bool { return *s.Array == Array{First: 5, Last: 5, Chunk: 1} },
		"gpus: 2":                        func(s Spec) bool { return s.GPUs.Count == 2 },
		"gpus: all":                      func(s Spec) bool { return s.GPUs.All && s.GPUs.Count == 0 },
		"gpus: {count: all, vram: 24GB}": func(s Spec) bool { return s.GPUs.All && s.GPUs.VRAM == 24e9 },
		"gpus: {any: [h100-80]}":         func(s Spec) bool { return s.GPUs.Count == 1 && s.GPUs.Any[0] == "h100-80" },
		"gpus: {cuda: \"12.4\", capabilities: [compute, video, video]}": func(s Spec) bool {
			return s.GPUs.Count == 1 && s.GPUs.CUDA == "12.4" && reflect.DeepEqual(s.GPUs.Capabilities, []string{"compute", "video"})
		},
		"cpus: 0.5":     func(s Spec) bool { return s.CPUMillis == 500 },
		"memory: 512m":  func(s Spec) bool { return s.Memory == 512<<20 },
		"disk: 1000000": func(s Spec) bool { return s.Disk == 1_000_000 },
		"env: {A: 1.50, B: true, C: x}": func(s Spec) bool {
			return reflect.DeepEqual(s.Env, map[string]string{"A": "1.50", "B": "true", "C": "x"})
		},
		"pay: {max_hourly: 0.29, budget: \"4.35\"}": func(s Spec) bool {
			return s.Pay.MaxHourly.Lo == 290_000 && s.Pay.Budget.Lo == 4_350_000
		},
		"retry: {max: 0}":                      func(s Spec) bool { return s.Retry.Max == 0 && s.Retry.Given && s.Retry.AvoidFailed },
		"retry: {avoid_failed_provider: true}": func(s Spec) bool { return s.Retry == RetrySpec{Max: 2, AvoidFailed: true} },
		"network: outbound":                    func(s Spec) bool { return s.Network == "outbound" },
		"limits: {run: 2d, logs: 1MiB, output: 5GB, pids: 10, open_files: 512}": func(s Spec) bool {
			return s.Limits.Run == 48*time.Hour && s.Limits.Logs == 1<<20 && s.Limits.Output == 5e9 && s.Limits.Pids == 10 && s.Limits.OpenFiles == 512 && s.Limits.Fetch == DefaultFetchLimit
		},
		"command: [echo, \"$$HOME ${HOME} ${LUMBUNG_JOB}\"]": func(s Spec) bool { return s.Command[1] == "$$HOME ${HOME} ${LUMBUNG_JOB}" },
	} {
		s, err := Parse("job.yaml", []byte("version: 1\nimage: x\n"+text))
		if err != nil || !check(s) {
			t.Errorf("%s\n%+v, %v", text, s, err)
		}
	}
}

func TestErrorsOfAJobFileSayWhereAndWhat(t *testing.T) {
	const head = "version: 1\nimage: x\n"
	for text, want := range map[string]string{
		"":                     "holds 0 documents",
		"version: 1":           "image: missing",
		"image: x":             "version: missing; begin the file with `version: 1`",
		"version: 2\nimage: x": "j.yaml:1:10: version: 2 is not a version",
		"version: one":         `j.yaml:1:10: version: "one" is no whole number`,
		"- a":                  "want keys with values, got a list",
		"just text":            "want keys with values, got a plain value",
		"a: 1\n---\nb: 2":      "holds 2 documents",
		head + "comand: [x]":   `j.yaml:3:1: unknown key "comand"; did you mean "command"?`,
		head + "zzzzzzzzzz: 1": `j.yaml:3:1: unknown key "zzzzzzzzzz"; there is array, cache, checkpoint, command`,
		head + "limits:\n  fetch: 1m\n  runn: 1h":                 `j.yaml:5:3: unknown key "limits.runn"; did you mean "limits.run"?`,
		head + "pay: {max_hourly: 1, max_daily: 2}":               `j.yaml:3:22: unknown key "pay.max_daily"`,
		head + "limits:\n  run: 1 hour":                           `j.yaml:4:8: limits.run: "1 hour" is no duration; write 1h, 30m or 90s`,
		head + "limits: {run: -5m}":                               "is not above 0",
		head + "limits: {run: 401d}":                              "is not between 1ms and 400d",
		head + "limits: {pids: 0}":                                "limits.pids: 0 is below 1",
		head + "limits: {open_files: 3}":                          "limits.open_files: 3 is not between 16 and 1048576",
		head + "memory: lots":                                     `j.yaml:3:9: memory: "lots" is no size; write 512MB, 16GB or 1.5GiB`,
		head + "memory: 0":                                        "must be above 0",
		head + "memory: [1]":                                      "memory: want one value, got a list",
		head + "memory:":                                          "memory: it has no value",
		head + "cpus: 0":                                          "is no number of cores",
		head + "cpus: .inf":                                       "cpus: want one value, got no finite number",
		head + "gpus: {any: [rtx4080x]}":                          `gpus.any[0]: GPU model "rtx4080x" is not known; did you mean rtx4080?`,
		head + "gpus: {any: rtx4090}":                             "gpus.any: want a list, got a plain value",
		head + "gpus: {count: 17}":                                `"17" is neither a number up to 16 nor all`,
		head + "gpus: {cuda: newest}":                             `gpus.cuda: "newest" is no version`,
		head + "gpus: {capabilities: [vidio]}":                    `gpus.capabilities[0]: GPU capability "vidio" is not known; did you mean video?`,
		head + "gpus: {capabilities: [profiling]}":                "take of compute, utility",
		head + "gpus: nvidia":                                     "is not known",
		head + "array: {chunk: 2}":                                "array.range: missing",
		head + "array: {range: 9-1}":                              "array.range: \"9-1\" ends before it begins",
		head + "array: {range: 1-9:2, chunk: 3}":                  "keep one",
		head + "array: {range: 1-1000000}":                        "more than 100000 tasks",
		head + "inputs: [{from: ./a, too: /in}]":                  `unknown key "inputs[0].too"; did you mean "inputs[0].to"?`,
		head + "inputs: [{from: ./a, to: in}]":                    `inputs[0].to: "in" is no absolute path`,
		head + "inputs: {from: ./a, to: /in}":                     "inputs: want a list",
		head + "outputs: [/out]":                                  "outputs[0]: want keys with values",
		head + "pay: {budget: 0}":                                 "pay.budget: it must be above 0; leave it out for no limit",
		head + "pay: {budget: 1e3}":                               "is no amount",
		head + "pay: {budget: 0.0000001}":                         "is finer than usd's smallest unit",
		head + "retry: {avoid_failed_provider: yes}":              "want true or false",
		head + "retry: {avoid_failed_provider: false}":            "give max too",
		head + "network: bridge":                                  `"bridge" is neither none nor outbound`,
		head + "ports: [x]":                                       "\"x\" is not LOCAL:REMOTE",
		head + "ports: [{local: 0, remote: 80}]":                  "\"0\" is no port",
		head + "ports: [80:80, 80:81]":                            "80 is used twice",
		head + "ports: [80]\narray: 1-2":                          "an array has none of its own",
		head + "secrets: a":                                       "secrets: want a list",
		head + "secrets: {A: hunter2}":                            "secrets: want a list",
		head + "secrets: [A, B, A]":                               `secrets[2]: "A" is used twice`,
		head + "secrets: [A=hunter2]":                             "secrets[0]: a secret's name is up to 64 letters",
		head + "secrets: [../a]":                                  "secrets[0]: a secret's name is up to 64 letters",
		head + "secrets: [{file: a}]":                             "secrets[0]: a secret's name is up to 64 letters",
		head + "secrets: [{name: A, value: hunter2}]":             `unknown key "secrets[0].value"; there is file, name`,
		head + "secrets: [A]\ncache: [{key: k, to: /run}]":        "secrets: they lie in /run/secrets, and so nothing else may come to /run",
		head + "secrets: [A]\noutputs: [{from: /run/secrets/x/}]": "nothing else may come to /run/secrets/x",
		head + "nodes: 2":                                         "nodes: not in this version yet",
		head + "checkpoint: {each: 5m}":                           `unknown key "checkpoint.each"`,
		head + "checkpoint: {every: 10ms}":                        "checkpoint.every: 10ms is not between",
		head + "checkpoint: {every: 5m}\ngpus: 1":                 "checkpoint: the memory of a GPU cannot be saved",
		head + "image: y":                                         "already defined",
		head + "env: {A: [1]}":                                    "env.A: want one value, got a list",
		head + "env: {LUMBUNG_JOB: x}":                            "names that begin with LUMBUNG_ are lumbung's own",
		head + "command: [\"${LUMBUNG_INDEX}\"]":                  "${LUMBUNG_INDEX} is of arrays alone",
		head + "array: 1-2\ncommand: [\"${LUMBUNG_INDX}\"]":       "${LUMBUNG_INDX} is not known; there is LUMBUNG_INDEX, LUMBUNG_FIRST",
		head + "command: a | b":                                   `"|" is a sign for a shell`,
		head + "command: \"'a\"":                                  "the quote ' is not closed",
		head + "command: \" \"":                                   "command: it is empty",
		head + "name: &n x\nworkdir: *n":                          "anchors and aliases are not read",
		head + "env:\n  <<: {A: b}":                               "",
		head + "name: !!str x":                                    "name: want one value, got a tag",
		head + "? [a]\n: b":                                       "found an invalid key",
		"a: [":                                                    "j.yaml:1",
		"\xff\xfe":                                                "no UTF-8 text",
		strings.Repeat("#", maxFile+1):                            "more than 1048576 bytes",
		head + "name: " + strings.Repeat("[", 1000):               "nested deeper",
	} {
		s, err := Parse("j.yaml", []byte(text))
		if err == nil {
			t.Errorf("%.80q was read as %+v", text, s)
			continue
		}
		if !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "j.yaml:") {
			t.Errorf("%.80q\n got: %v\nwant: %s", text, err, want)
		}
		if strings.Contains(err.Error(), "%!") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%.80q: %v", text, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(shot))
	for _, s := range []string{
		"version: 1\nimage: x\ncommand: a b 'c d'\n", "version: 1\nimage: x\ngpus: {count: all}\narray: 1-9:2",
		"a: &a [*a]", "? a\n: b", "{a: b, <<: {c: d}}", "!!map {a: 1}", "- - - -", "a: |\n  b\n", "version: 1\nimage: x\nenv:\n  A: ${LUMBUNG_JOB}$$",
		"version: 1\nimage: x\nsecrets: [A, {name: b.c, file: -}]\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse("j.yaml", data)
		if err != nil {
			if !errors.Is(err, ErrSpec) {
				t.Fatalf("%v is no ErrSpec", err)
			}
			return
		}
		if err := s.Validate(); err != nil {
			t.Fatalf("read, but not valid: %v", err)
		}
		for _, task := range []int{0, s.Tasks() - 1} {
			if _, _, err := Expand(s, "j1", task); err != nil {
				t.Fatalf("read, but cannot be expanded: %v", err)
			}
		}
	})
}

func TestDeepFilesEndSoon(t *testing.T) {
	const size = maxFile / 8
	for name, text := range map[string]string{
		"brackets": strings.Repeat("[", size), "braces": strings.Repeat("{a: ", size/4), "dashes": strings.Repeat("- ", size/2),
		"questions": strings.Repeat("? ", size/2), "tags": strings.Repeat("!a ", size/3), "anchors": strings.Repeat("&a ", size/3),
		"colons": strings.Repeat("a: ", size/3), "quotes": strings.Repeat("'", size),
	} {
		if _, err := Parse("j.yaml", []byte(text)); !errors.Is(err, ErrSpec) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
