package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/pprof"

	"github.com/spf13/cobra"
)

// profiling gives every command the flag --cpu-profile FILE: where its processor time went, from its start to its end, for
// `go tool pprof`. It is for those who work on Tasker: by such profiles bin/tasker is optimized (make profile).
func profiling(root *cobra.Command, c *cli) {
	path := root.PersistentFlags().String("cpu-profile", "", "write a profile of the processor time to `FILE`")
	_ = root.PersistentFlags().MarkHidden("cpu-profile") // it was just made
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if *path == "" {
			return nil
		}
		file, err := os.Create(*path)
		if err != nil {
			return fmt.Errorf("making the profile: %w", err)
		}
		if err := pprof.StartCPUProfile(file); err != nil {
			return errors.Join(fmt.Errorf("making the profile: %w", err), file.Close())
		}
		c.atEnd = func() error {
			pprof.StopCPUProfile()
			return file.Close()
		}
		return nil
	}
}
