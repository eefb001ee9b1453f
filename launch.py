from diffmm_dist.start import main

if __name__ == "__main__":
    main()
