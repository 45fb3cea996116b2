package main

import (
	"io"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/job/sandbox"
)

func (a *app) versionCmd() *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use:   "version",
		Short: "Show what this binary is",
		Args:  takes(),
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version string `json:"version"`
				Go      string `json:"go"`
				System  string `json:"system"`
				Sandbox bool   `json:"sandbox"` // whether containers can run with this build
			}{versionText(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH, sandbox.Payload()}
			return a.show(v, func(w io.Writer) {
				inside := "with gVisor inside"
				if !v.Sandbox {
					inside = "without a sandbox: it can rent, not provide"
				}
				row(w, "lumbung "+v.Version, v.System, v.Go, inside)
			})
		},
	})
}
