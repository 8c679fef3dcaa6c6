// Command protoc-gen-clientproto is a protoc plugin that copies .proto files without their validation rules, for clients
// in any language. A plugin is given descriptors, which have lost the layout of the source, so it reads the files anew:
// run it from the folder that holds proto/.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/types/pluginpb"

	"github.com/taskerhq/tasker/internal/contract"
)

func main() {
	protogen.Options{}.Run(func(plugin *protogen.Plugin) error {
		plugin.SupportedFeatures = uint64(pluginpb.CodeGeneratorResponse_FEATURE_PROTO3_OPTIONAL)
		for _, file := range plugin.Files {
			if !file.Generate {
				continue
			}
			name := file.Desc.Path()
			source, err := os.ReadFile(filepath.Join("proto", filepath.FromSlash(name)))
			if err != nil {
				return fmt.Errorf("reading the source of %s: %w", name, err)
			}
			stripped, err := contract.Strip(name, source)
			if err != nil {
				return err
			}
			if _, err := plugin.NewGeneratedFile(name, "").Write(stripped); err != nil {
				return fmt.Errorf("writing %s: %w", name, err)
			}
		}
		return nil
	})
}
