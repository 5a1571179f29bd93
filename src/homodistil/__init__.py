"""HomoDistil."""
