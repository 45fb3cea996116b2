package main

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// argsOf is what each command says without its arguments ("" where it needs
// none), and after those in enough, with one argument more ("" where it takes
// any number).
var argsOf = map[string]struct {
	missing string
	enough  []string
	tooMany string
}{
	"up":               {"", nil, `up takes no arguments, but got "x"`},
	"down":             {"", nil, `down takes no arguments, but got "x"`},
	"status":           {"", nil, `status takes no arguments, but got "x"`},
	"doctor":           {"", nil, `doctor takes no arguments, but got "x"`},
	"netcheck":         {"", nil, `netcheck takes no arguments, but got "x"`},
	"ping":             {"ping needs a peer: lumbung ping PEER", []string{"p"}, `ping got "x" too many: lumbung ping PEER`},
	"id":               {"", nil, `id takes no arguments, but got "x"`},
	"devnet":           {"", nil, `devnet takes no arguments, but got "x"`},
	"demo":             {"", nil, `demo takes no arguments, but got "x"`},
	"run":              {"run needs an image: lumbung run IMAGE [COMMAND…]", nil, ""},
	"submit":           {"submit needs a job file: lumbung submit FILE.yaml", []string{"f.yaml"}, `submit got "x" too many: lumbung submit FILE.yaml`},
	"quote":            {"quote needs a job file or an image: lumbung quote FILE.yaml|IMAGE [COMMAND…]", nil, ""},
	"ps":               {"", nil, `ps takes no arguments, but got "x"`},
	"inspect":          {"inspect needs a job: lumbung inspect JOB", []string{"j"}, `inspect got "x" too many: lumbung inspect JOB`},
	"logs":             {"logs needs a job: lumbung logs JOB", []string{"j"}, `logs got "x" too many: lumbung logs JOB`},
	"events":           {"", nil, `events takes no arguments, but got "x"`},
	"wait":             {"wait needs a job: lumbung wait JOB", []string{"j"}, `wait got "x" too many: lumbung wait JOB`},
	"stop":             {"stop needs a job: lumbung stop JOB", []string{"j"}, `stop got "x" too many: lumbung stop JOB`},
	"get":              {"get needs a job or a CID: lumbung get JOB|CID[/PATH] [DIR]", []string{"j", "d"}, `get got "x" too many: lumbung get JOB|CID[/PATH] [DIR]`},
	"exec":             {"exec needs a job: lumbung exec JOB -- CMD…", nil, ""},
	"port":             {"port needs a job: lumbung port JOB LOCAL:REMOTE…", nil, ""},
	"offers":           {"", nil, `offers takes no arguments, but got "x"`},
	"image load":       {"image load needs an image: a file, a folder or a name such as docker://NAME: lumbung image load FILE|DIR", []string{"f"}, `image load got "x" too many: lumbung image load FILE|DIR`},
	"image from":       {"image from needs a program: lumbung image from PROGRAM", []string{"p"}, `image from got "x" too many: lumbung image from PROGRAM`},
	"image ls":         {"", nil, `image ls takes no arguments, but got "x"`},
	"image rm":         {"image rm needs an image: lumbung image rm IMAGE…", nil, ""},
	"add":              {"add needs a file or folder, or - for stdin: lumbung add PATH…|-", nil, ""},
	"cat":              {"cat needs a CID: lumbung cat CID[/PATH]", []string{"c"}, `cat got "x" too many: lumbung cat CID[/PATH]`},
	"ls":               {"ls needs a CID: lumbung ls CID[/PATH]", []string{"c"}, `ls got "x" too many: lumbung ls CID[/PATH]`},
	"provider caches":  {"", nil, `provider caches takes no arguments, but got "x"`},
	"pin":              {"", []string{"c"}, `pin got "x" too many: lumbung pin [CID[/PATH]]`},
	"pin ls":           {"", nil, `pin ls takes no arguments, but got "x"`},
	"dag export":       {"dag export needs a CID: lumbung dag export CID [FILE|-]", []string{"c", "f"}, `dag export got "x" too many: lumbung dag export CID [FILE|-]`},
	"dag import":       {"dag import needs a CAR file, or - for stdin: lumbung dag import FILE|-", []string{"f"}, `dag import got "x" too many: lumbung dag import FILE|-`},
	"gc":               {"", nil, `gc takes no arguments, but got "x"`},
	"provider pause":   {"", nil, `provider pause takes no arguments, but got "x"`},
	"provider resume":  {"", nil, `provider resume takes no arguments, but got "x"`},
	"provider drain":   {"", nil, `provider drain takes no arguments, but got "x"`},
	"drain":            {"", nil, `drain takes no arguments, but got "x"`},
	"provider price":   {"", nil, `provider price takes no arguments, but got "x"`},
	"wallet":           {"", nil, `wallet takes no arguments, but got "x"`},
	"ledger statement": {"", nil, `ledger statement takes no arguments, but got "x"`},
	"completion":       {"completion needs a shell: lumbung completion bash|zsh|fish", []string{"bash"}, `completion got "x" too many: lumbung completion bash|zsh|fish`},
	"version":          {"", nil, `version takes no arguments, but got "x"`},
}

// leaves are the paths of the commands that do something, without lumbung.
func leaves(cmd *cobra.Command) []string {
	var out []string
	for _, sub := range cmd.Commands() {
		out = append(out, leaves(sub)...)
		if !sub.HasSubCommands() || sub.Flags().Lookup("output") != nil { // it answers by itself
			out = append(out, commandName(sub))
		}
	}
	return out
}

func TestArgsOfEveryCommand(t *testing.T) {
	got, want := leaves(newTestApp(t).root()), slices.Sorted(maps.Keys(argsOf))
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Fatalf("commands\n%q, the table has\n%q", got, want)
	}
	for path, c := range argsOf {
		words := strings.Fields(path)
		if c.missing != "" {
			wantUsage(t, c.missing, path, words)
			wantUsage(t, c.missing, path, append(slices.Clone(words), ""))
		}
		if c.tooMany != "" {
			wantUsage(t, c.tooMany, path, append(slices.Concat(words, c.enough), "x"))
		}
	}
	wantUsage(t, "exec needs a command: lumbung exec JOB -- CMD…", "exec", []string{"exec", "j"})
	wantUsage(t, "port needs a port such as 8080:80: lumbung port JOB LOCAL:REMOTE…", "port", []string{"port", "j"})
	wantUsage(t, "exec needs a command: lumbung exec JOB -- CMD…", "exec", []string{"exec", "-i", "j", "--"})
	wantUsage(t, `completion does not know "tcsh": lumbung completion bash|zsh|fish`, "completion", []string{"completion", "tcsh"})
}

// wantUsage runs a command line that must be refused in these words.
func wantUsage(t *testing.T, words, path string, args []string) {
	t.Helper()
	a := newTestApp(t)
	code := a.main(args)
	if want := "error: " + words + "\n  try: lumbung " + path + " --help\n"; code != exitUsage || a.err.String() != want {
		t.Errorf("%q: code %d, stderr %q, want %q", args, code, a.err.String(), want)
	}
}

func TestTakes(t *testing.T) {
	for _, c := range []struct {
		words, args []string
		fine        bool
	}{
		{nil, nil, true},
		{[]string{"JOB"}, []string{"j"}, true},
		{[]string{"JOB", "[DIR]"}, []string{"j"}, true},
		{[]string{"JOB", "[DIR]"}, []string{"j", "d"}, true},
		{[]string{"JOB", "[DIR]"}, []string{"j", "d", "e"}, false},
		{[]string{"IMAGE", "[COMMAND…]"}, []string{"i"}, true},
		{[]string{"IMAGE", "[COMMAND…]"}, []string{"i", "", "a", "b"}, true},
		{[]string{"IMAGE…"}, []string{"i", "j", "k"}, true},
		{[]string{"JOB", "--", "CMD…"}, []string{"j", "c"}, true},
		{[]string{"JOB", "--", "CMD…"}, []string{"j", "--", "c", "--", "x"}, true},
		{[]string{"JOB", "--", "CMD…"}, []string{"j", "--"}, false},
	} {
		if err := takes(c.words...)(&cobra.Command{Use: "x"}, c.args); (err == nil) != c.fine {
			t.Errorf("%q of %q: %v", c.args, c.words, err)
		}
	}
}

func TestMissingArgumentAsJSON(t *testing.T) {
	a := newTestApp(t)
	code := a.main([]string{"run", "-o", "json"})
	var v verdict
	if err := json.Unmarshal([]byte(a.out.String()), &v); err != nil {
		t.Fatalf("%v: %q", err, a.out.String())
	}
	if code != exitUsage || v.Code != exitUsage || v.ErrorCode != "usage" || v.ExitSource != sourceLumbung || v.Remedy != "lumbung run --help" {
		t.Errorf("code %d, %+v", code, v)
	}
}

func TestSimilarCommands(t *testing.T) {
	root := newTestApp(t).root()
	for word, want := range map[string][]string{
		"rn":       {"run"},
		"rnu":      {"run"},
		"runn":     {"run"},
		"RUN":      {"run"},
		"pa":       {"ps"},
		"xx":       nil,
		"zzz":      nil,
		"st":       {"stop", "status"},
		"pi":       {"pin", "ps", "ping"},
		"statsu":   {"status"},
		"insect":   {"inspect"},
		"submitt":  {"submit"},
		"provider": {"provider"},
		"dmeo":     nil, // hidden
	} {
		if got := similar(root, word); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", word, got, want)
		}
	}
	if got := similar(find(root, "image"), "lod"); !slices.Equal(got, []string{"load"}) {
		t.Errorf("image lod: got %q", got)
	}
}
