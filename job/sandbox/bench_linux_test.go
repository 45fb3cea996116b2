package sandbox

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// BenchmarkNoop runs a program that does nothing: by this package from Prepare
// to the end of Wait, and the same bundle by the bare runsc command, in one run.
func BenchmarkNoop(b *testing.B) {
	e := newEnv(b)
	runsc, err := e.r.Ready(b.Context())
	must(b, err)
	b.Run("sandbox", func(b *testing.B) {
		e := *e
		e.t = b
		for b.Loop() {
			s := e.spec()
			s.Args = []string{"/job"}
			e.start(s)
			if x := e.wait(s.ID); x.Code != 0 {
				b.Fatalf("%+v", x)
			}
			b.StopTimer()
			must(b, e.r.Remove(b.Context(), s.ID))
			b.StartTimer()
		}
	})
	b.Run("runsc", func(b *testing.B) {
		dir := b.TempDir()
		s := e.spec()
		s.Args = []string{"/job"}
		spec := ociSpec(dir, s.withDefaults(), identity{home: "/"}, false)
		spec.Root.Path = e.image
		must(b, os.Mkdir(filepath.Join(dir, dirUpper), 0o700))
		data, err := json.Marshal(spec)
		must(b, err)
		must(b, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600))
		args := []string{"--root=" + filepath.Join(dir, dirRunsc), "--network=none", "--ignore-cgroups", "--host-settings=ignore"}
		if e.r.user {
			args = append(args, "--rootless")
		}
		args = append(args, fmt.Sprintf("--overlay2=root:dir=%s,size=%d", filepath.Join(dir, dirUpper), 64<<20), "run", "--bundle="+dir, cid)
		for b.Loop() {
			if out, err := exec.CommandContext(b.Context(), runsc, args...).CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
		// runsc pins a network namespace beside its state.
		_ = exec.CommandContext(b.Context(), "umount", filepath.Join(dir, dirRunsc, "null-netns")).Run()
	})
}
